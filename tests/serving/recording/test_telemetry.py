"""What an ingress replica's metrics say after requests whose numbers are worked out by hand. The metrics' store is a fake."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes
from pydantic import ValidationError

from firewall_ray.config.serving import PriceConfig, ServingConfig
from serve_app.metrics import METRICS, SCORE_BINS, RayMetrics, markdown_table
from serve_app.models.answers import Usage
from serve_app.money.pricing import Pricing
from serve_app.recording.exchange import Exchange
from serve_app.recording.telemetry import Telemetry
from serve_app.routing.decision import Decision

PRICES = {"weak": PriceConfig(prompt=1, completion=2), "strong": PriceConfig(prompt=10, completion=30)}


@dataclass
class Store:
    """Keeps what is recorded, and refuses what Ray would refuse."""

    counts: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))
    observed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, name: str, value: float, tags: dict[str, str]) -> None:
        metric = METRICS[name]
        assert set(tags) == set(metric.tags)
        assert all(isinstance(each, str) for each in tags.values())
        if metric.kind == "counter":
            assert value > 0
            self.counts[name, *(tags[tag] for tag in metric.tags)] += value
        else:
            self.observed[name].append(value)


def exchange_of(route: str = "weak", score: float | None = 0.75, reason: str = "score", **fields: Any) -> Exchange:
    """One that went well: the router took 0.125 s, the first byte came after 0.5 s, of which the replica took 0.25 s."""
    decision = Decision(route, reason, score, 0.5, "v1", False, 0.3)  # type: ignore[arg-type]
    usual = {
        "decision": decision,
        "answered_by": route,
        "status": 200,
        "router_s": 0.125,
        "first_byte_s": 0.5,
        "model_s": 0.25,
        "total_s": 1.0,
    }
    prices = fields.pop("prices", PRICES)
    exchange = Exchange("chat", **{**usual, "usage": Usage(100, 10), **fields})
    Pricing(prices).record(exchange)
    return exchange


def recorded(*exchanges: Exchange) -> Store:
    store = Store()
    telemetry = Telemetry(store)
    for exchange in exchanges:
        telemetry.record(exchange)
    return store


def test_a_routed_answer_is_counted_timed_and_priced() -> None:
    store = recorded(exchange_of(key_name="team-a"))
    assert dict(store.counts) == {
        ("firewall_requests", "chat", "weak", "score", "200", "team-a"): 1,
        ("firewall_tokens", "weak", "prompt", "team-a"): 100,
        ("firewall_tokens", "weak", "completion", "team-a"): 10,
        ("firewall_strong_calls_avoided",): 1,
        # 100 prompt tokens at 10 - 1 and 10 completion tokens at 30 - 2 dollars a million: 900 + 280 millionths.
        ("firewall_estimated_saving_usd", "team-a"): pytest.approx(0.00118),
        # 100 at 1 and 10 at 2.
        ("firewall_cost_usd", "chat", "weak", "team-a"): pytest.approx(0.00012),
    }
    assert dict(store.observed) == {
        "firewall_router_score": [0.75],
        "firewall_router_s": [0.125],
        "firewall_queue_s": [0.125],  # 0.5 - 0.125 - 0.25
        "firewall_total_s": [1.0],
        "firewall_strong_fraction": [0.0],
        "firewall_target_strong_fraction": [0.3],
    }


def test_the_first_token_is_timed_where_tokens_come_one_by_one() -> None:
    assert recorded(exchange_of(streams=True)).observed["firewall_first_token_s"] == [0.5]
    assert "firewall_first_token_s" not in recorded(exchange_of()).observed


def test_the_realised_fraction_is_of_the_last_thousand_and_beside_it_the_mean_of_what_they_asked_for() -> None:
    weak, strong = exchange_of(), exchange_of("strong", 0.25)
    asked_for_more = Exchange("chat", decision=Decision("strong", "score", 0.25, 0.5, "v1", False, 0.9), status=200)
    store = recorded(weak, weak, weak, strong, asked_for_more)
    assert store.observed["firewall_strong_fraction"] == pytest.approx([0, 0, 0, 1 / 4, 2 / 5])
    assert store.observed["firewall_target_strong_fraction"] == pytest.approx([0.3, 0.3, 0.3, 0.3, (4 * 0.3 + 0.9) / 5])

    store = recorded(*[strong] * 1_000, *[weak] * 400)
    assert store.observed["firewall_strong_fraction"][-1] == pytest.approx(0.6)  # 600 of the last 1,000


def test_a_strong_call_is_avoided_only_where_a_score_chose_the_weak_model_and_it_answered() -> None:
    not_avoided = [
        exchange_of("strong", 0.25),
        exchange_of(score=None, reason="requested"),
        exchange_of(score=None, reason="router-timeout"),
        exchange_of(answered_by="strong", fallback="dead"),
        exchange_of(status=502),
    ]
    assert ("firewall_strong_calls_avoided",) not in recorded(*not_avoided).counts
    in_shadow = exchange_of().decision.shadowed_by("weak")  # type: ignore[union-attr]
    assert ("firewall_strong_calls_avoided",) not in recorded(exchange_of(decision=in_shadow)).counts
    assert recorded(exchange_of(reason="sticky")).counts["firewall_strong_calls_avoided",] == 1


def test_a_sticky_turn_repeats_no_score_and_asks_no_router() -> None:
    observed = recorded(exchange_of(reason="sticky")).observed
    assert observed.keys().isdisjoint({"firewall_router_score", "firewall_router_s"})
    assert observed["firewall_strong_fraction"] == [0.0]


def test_a_shadow_decision_counts_as_the_router_made_it() -> None:
    decision = Decision("strong", "score", 0.25, 0.5, "v1", False, 0.3).shadowed_by("weak")
    store = recorded(Exchange("chat", decision=decision, answered_by="weak", status=200, router_s=0.1))
    assert store.observed["firewall_strong_fraction"] == [1.0]
    assert store.observed["firewall_router_score"] == [0.25]
    assert ("firewall_requests", "chat", "weak", "shadow", "200", "none") in store.counts


def test_a_fallback_names_both_models_and_the_cause_and_spoils_no_queue_time() -> None:
    store = recorded(exchange_of("strong", 0.25, answered_by="weak", fallback="overloaded"))
    assert store.counts["firewall_fallbacks", "strong", "weak", "overloaded"] == 1
    assert "firewall_queue_s" not in store.observed
    neither = recorded(exchange_of("strong", 0.25, answered_by=None, fallback="dead", status=503, usage=None))
    assert neither.counts["firewall_fallbacks", "strong", "none", "dead"] == 1
    assert neither.counts["firewall_requests", "chat", "none", "score", "503", "none"] == 1


def test_a_client_that_leaves_is_counted_and_does_not_shorten_the_total() -> None:
    store = recorded(exchange_of(client_left=True, status=499, usage=None))
    assert store.counts["firewall_client_disconnects", "chat"] == 1
    assert "firewall_total_s" not in store.observed


def test_a_dearer_weak_model_saves_nothing_and_breaks_nothing() -> None:
    store = Store()
    Telemetry(store).record(exchange_of(prices={"weak": PRICES["strong"], "strong": PRICES["weak"]}))
    assert store.counts["firewall_strong_calls_avoided",] == 1
    assert ("firewall_estimated_saving_usd", "none") not in store.counts


def test_an_answer_without_tokens_breaks_no_counter() -> None:
    assert ("firewall_tokens", "weak", "completion", "none") not in recorded(exchange_of(usage=Usage(3, 0))).counts


@pytest.mark.parametrize("only", ["weak", "strong"])
def test_one_price_alone_is_refused(only: str) -> None:
    with pytest.raises(ValidationError, match=f"only the {only} model has one"):
        ServingConfig.model_validate({"prices": {only: {"prompt": 1, "completion": 2}}})


def test_every_request_through_the_gateway_is_counted_once_with_tags_of_the_config() -> None:
    """Refused ones, unknown models and broken answers included; nothing that the client wrote becomes a tag."""
    fakes = Fakes(FakeRouter({"hard": 0.1}))
    store = Store()
    fakes.gateway._observers = [Telemetry(store)]  # type: ignore[assignment]
    canary = "Zyxwvutopia"
    fakes.chat("easy")
    fakes.chat("hard")
    fakes.chat(canary, model=canary)
    fakes.chat(canary, model="firewall-0.77")
    fakes.post("/v1/completions", {"model": "firewall", "prompt": canary, "stream": True})
    fakes.post("/v1/chat/completions", b"{" + canary.encode())
    fakes.weak.why = fakes.strong.why = "overloaded"
    fakes.chat(canary)
    counts = {key[1:]: count for key, count in store.counts.items() if key[0] == "firewall_requests"}
    assert counts == {
        ("chat", "weak", "score", "200", "none"): 1,
        ("chat", "strong", "score", "200", "none"): 2,  # firewall-0.77: the fake's 0.5 is below it
        ("completions", "weak", "score", "200", "none"): 1,
        ("chat", "none", "none", "404", "none"): 1,
        ("chat", "none", "none", "400", "none"): 1,
        ("chat", "none", "score", "503", "none"): 1,
    }
    assert canary not in str(store)


def test_an_observer_that_fails_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def record(self, exchange: Exchange) -> None:
            raise OSError("secret question")

    fakes = Fakes()
    fakes.gateway._observers = [Broken(), fakes.recorder]  # type: ignore[assignment]
    assert fakes.chat().status_code == 200
    assert len(fakes.recorder.exchanges) == 1
    assert "Broken failed" in caplog.text
    assert "secret" not in caplog.text


def test_the_score_bins_are_twentieths() -> None:
    assert len(SCORE_BINS) == 20
    assert SCORE_BINS[:2] == (0.05, 0.1)
    assert SCORE_BINS[-1] == 1.0


def test_ray_takes_every_metric_as_it_is_described() -> None:
    metrics = RayMetrics()
    for name, metric in METRICS.items():
        metrics(name, 0.5, dict.fromkeys(metric.tags, "x"))


def test_every_metric_that_the_code_records_is_described_and_every_described_one_recorded() -> None:
    named = {name for path in Path("serve_app").rglob("*.py") for name in re.findall(r'\(\s*"(firewall_\w+)",', path.read_text())}
    assert named == METRICS.keys()


def test_the_documentation_lists_the_metrics_as_they_are() -> None:
    """Print the table anew: python -c "from serve_app.metrics import markdown_table; print(markdown_table())" """
    assert markdown_table() in Path("docs/serving.md").read_text()
