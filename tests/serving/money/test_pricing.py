"""What answers cost and saved, with the sums worked out by hand."""

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from firewall_ray.config.money import PriceConfig
from firewall_ray.config.serving import ServingConfig
from serve_app.models.answers import Usage, usage_of
from serve_app.models.gpu_time import GpuTime
from serve_app.money.balance import Balance
from serve_app.money.pricing import HEADER, Pricing
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Decision

PRICES = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 10, "completion": 30, "cached_prompt": 5}}
# The fakes take max_tokens for the number of a prompt's tokens, and answer in 3.
HEX = "0" * 64


def exchange(route: str = "weak", usage: Usage | None = None, **fields: Any) -> Exchange:
    decision = Decision(route, "score", 0.75 if route == "weak" else 0.25, 0.5, "v1", False, 0.3)  # type: ignore[arg-type]
    usual = {"decision": decision, "answered_by": route, "status": 200, "router_s": 1.0, "total_s": 3.0, "num_bytes": 400}
    return Exchange("chat", **{**usual, "usage": usage, **fields})


def priced(exchange: Exchange, **prices: Any) -> Exchange:
    Pricing(ServingConfig.model_validate({"prices": prices or PRICES}).prices).record(exchange)
    return exchange


def test_a_whole_answer_says_its_cost_and_so_does_the_log() -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}), prices=PRICES)
    assert fakes.chat(max_tokens=5).headers[HEADER] == "0.000011000"  # 5 at 1 and 3 at 2 dollars a million
    assert fakes.chat("hard", max_tokens=5).headers[HEADER] == "0.000140000"  # 5 at 10, 3 at 30
    assert HEADER not in fakes.chat(max_tokens=5, stream=True).headers  # nobody knows yet
    assert HEADER not in fakes.chat(model="gpt-4").headers
    costs = [each.cost_usd for each in fakes.recorder.exchanges]
    assert costs == pytest.approx([11e-6, 140e-6, 11e-6, 0.0])


def test_without_prices_nothing_has_a_cost() -> None:
    fakes = Fakes()
    assert HEADER not in fakes.chat().headers
    assert fakes.recorder.exchanges[0].cost_usd is None


def test_the_model_that_answered_is_paid_not_the_one_that_was_to() -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}), prices=PRICES)
    fakes.strong.why = "overloaded"
    assert fakes.chat("hard", max_tokens=5).headers[HEADER] == "0.000011000"
    fakes.weak.why = "dead"
    assert fakes.chat("hard").status_code == 503
    assert fakes.recorder.exchanges[-1].cost_usd == 0.0


def test_cached_tokens_have_a_price_of_their_own() -> None:
    # 20 at 10, 80 at 5 and 10 at 30 dollars a million.
    assert priced(exchange("strong", Usage(100, 10, cached_tokens=80))).cost_usd == pytest.approx(900e-6)
    assert priced(exchange("weak", Usage(100, 10, cached_tokens=80))).cost_usd == pytest.approx(120e-6)


def test_own_models_cost_the_time_of_their_gpus() -> None:
    prices = {"weak": {"gpu_second": 0.001}, "strong": PRICES["strong"]}
    assert priced(exchange("weak", Usage(100, 10, gpu_s=0.25)), **prices).cost_usd == pytest.approx(0.00025)


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}, 4),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, 0),
        ({"prompt_tokens": 9, "completion_tokens": 2}, 0),
    ],
)
def test_usage_is_read_as_servers_send_it(usage: dict[str, Any], cached: int) -> None:
    assert usage_of(usage) == Usage(9, 2, cached)


def test_what_nobody_said_is_estimated_at_the_rates_of_the_models_last_answers() -> None:
    """Answers of 2 s have 400 bytes, 100 tokens of prompt and 10 of answer; one that is left after 4 s has 20."""
    pricing = Pricing(ServingConfig.model_validate({"prices": PRICES}).prices)
    for _ in range(400):
        pricing.record(exchange("weak", Usage(100, 10)))
    left = exchange("weak", answered_by=None, status=499, client_left=True, total_s=5.0)
    broken = exchange("weak", status=502, total_s=5.0)
    without_usage = exchange("weak", total_s=5.0)
    for each in (left, broken, without_usage):
        pricing.record(each)
        assert each.cost_usd == pytest.approx((100 * 1 + 20 * 2) / 1e6, rel=0.03)
    refused = exchange("weak", status=400)
    pricing.record(refused)
    assert refused.cost_usd == 0.0


def test_what_was_saved_is_the_strong_price_less_the_cost_and_nothing_where_no_score_decided() -> None:
    assert priced(exchange("weak", Usage(100, 10))).saved_usd == pytest.approx(1_300e-6 - 120e-6)
    assert priced(exchange("strong", Usage(100, 10))).saved_usd == 0.0
    assert priced(exchange("weak", Usage(100, 10), decision=Decision("weak", "requested"))).saved_usd is None
    assert priced(exchange("weak", Usage(100, 10), status=502)).saved_usd is None


def test_against_a_strong_model_of_ones_own_an_answer_would_have_taken_the_time_that_its_tokens_take() -> None:
    pricing = Pricing({"weak": PriceConfig(prompt=0, completion=0), "strong": PriceConfig(gpu_second=0.01)})
    for _ in range(1_000):
        pricing.record(exchange("strong", Usage(100, 50, gpu_s=2.0)))
    weak = exchange("weak", Usage(100, 10))
    pricing.record(weak)
    assert weak.saved_usd == pytest.approx(0.01 * 10 * 2.0 / 50, rel=0.01)


# The balance ---------------------------------------------------------------------------------------------------------


def balance_of(*saved: float) -> Balance:
    balance = Balance()
    for usd in saved:
        balance.add(exchange(cost_usd=0.5, saved_usd=usd, key_name="ann"))
    return balance


def test_the_interval_of_what_was_saved_by_hand() -> None:
    assert balance_of(1.0).saved() is None
    found = balance_of(1.0, 2.0, 3.0, 6.0).saved()
    assert found is not None
    # Mean 3; squares 4 + 1 + 0 + 9 = 14, over 3 and over 4: 1.1667, whose root is 1.0801, times 1.96: 2.1170.
    assert (found.value, found.low, found.high) == (
        pytest.approx(3_000),
        pytest.approx(883.0, abs=0.5),
        pytest.approx(5_117.0, abs=0.5),
    )


def test_the_interval_holds_the_truth_in_95_of_100() -> None:
    rng = random.Random(0)
    found = [balance_of(*(rng.choice([0.0, 0.0, 0.01, 0.03]) for _ in range(200))).saved() for _ in range(500)]
    assert 0.92 < sum(each.low < 10.0 < each.high for each in found if each) / 500 < 0.98  # the mean of the four is 0.01


def test_stats_has_dollars_per_thousand_requests_by_route_endpoint_and_of_ones_own_key_alone() -> None:
    fakes = Fakes(FakeRouter({"hard": 0.1}), prices=PRICES)
    for text in ("easy", "easy", "easy", "hard"):
        fakes.chat(text, max_tokens=5)
    fakes.post("/v1/completions", {"model": "small", "prompt": "Why?", "max_tokens": 5})
    fakes.chat(model="gpt-4")  # no model worked on it
    money = fakes.counters.snapshot()["money"]
    assert (money["requests"], money["usd"]) == (5, pytest.approx((4 * 11 + 140) * 1e-6))
    assert money["usd_per_1000_requests"] == pytest.approx(1_000 * 184e-6 / 5)
    assert money["by_route"]["strong"] == {
        "requests": 1,
        "usd": pytest.approx(140e-6),
        "usd_per_1000_requests": pytest.approx(0.14),
    }
    assert {name: each["requests"] for name, each in money["by_endpoint"].items()} == {"chat": 4, "completions": 1}
    saved = money["saved_usd_per_1000_requests"]
    assert saved["requests"] == 4
    assert saved["value"] == pytest.approx(1_000 * 3 * 129e-6 / 4)  # as in test_live_counters
    assert saved["low"] < saved["value"] < saved["high"]
    # The strong model for these four: 4 * 140; three of them cost 11.
    assert money["saved_fraction"] == pytest.approx(3 * 129 / (4 * 140))

    ours = exchange("weak", Usage(5, 3), key_name="ann", cost_usd=11e-6)
    fakes.counters.record(ours)
    assert fakes.counters.snapshot("ann")["money"]["this_key"]["requests"] == 1
    assert fakes.counters.snapshot("bob")["money"]["this_key"] == {"requests": 0, "usd": 0.0, "usd_per_1000_requests": None}
    assert "ann" not in str(fakes.counters.snapshot("bob"))
    assert Fakes().counters.snapshot()["money"] is None
    assert Fakes(prices=PRICES).counters.snapshot()["money"]["saved_fraction"] is None


def test_stats_over_http_is_of_the_callers_key() -> None:
    fakes = Fakes(prices=PRICES)
    fakes.chat()

    async def get() -> Any:
        async with fakes.client() as client:
            return (await client.get("/stats")).json()

    assert asyncio.run(get())["money"]["this_key"] is None


# The time of GPUs ----------------------------------------------------------------------------------------------------


def test_answers_that_are_under_way_together_share_the_gpus() -> None:
    now = 0.0
    time = GpuTime(4, lambda: now)
    with time.answering() as first:
        now = 1.0
        with time.answering() as second:
            now = 3.0
            assert (first(), second()) == (4 * (1 + 2 / 2), 4 * 2 / 2)
        now = 4.0
        assert first() == 4 * 3
    now = 10.0  # idle
    with time.answering() as third:
        now = 11.0
        assert third() == 4


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=20))
def test_the_parts_of_all_answers_are_the_time_in_which_there_was_one(answers: list[tuple[float, float]]) -> None:
    now = 0.0
    time = GpuTime(1, lambda: now)
    moments = sorted({moment for began, took in answers for moment in (began, began + took)})
    open_, parts = {}, 0.0
    busy = sum(b - a for a, b in pairwise(moments) if any(x <= a and b <= x + t for x, t in answers))
    for now in moments:
        for i, (began, _) in enumerate(answers):
            if began == now:
                context = time.answering()
                open_[i] = context, context.__enter__()
        for i, (began, took) in enumerate(answers):
            if began + took == now:
                context, had_s = open_.pop(i)
                parts += had_s()
                context.__exit__(None, None, None)
    assert parts == pytest.approx(busy, abs=1e-6)


# What the config may say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "match"),
    [
        ({"prompt": 1}, "give prompt and completion"),
        ({}, "give prompt and completion"),
        ({"gpu_second": 1, "prompt": 1, "completion": 1}, "gpu_second stands alone"),
        ({"prompt": -1, "completion": 1}, "greater than or equal to 0"),
    ],
)
def test_a_price_is_by_tokens_or_by_time(price: dict[str, float], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        PriceConfig.model_validate(price)


@pytest.mark.parametrize(
    ("serving", "match"),
    [
        ({"spend_caps": {"all": {"day": 1}}}, "without prices"),
        ({"prices": PRICES, "spend_caps": {"keys": {"ann": {"day": 1}}}}, "no API key has the name ann. There are: none"),
        ({"prices": PRICES, "api_keys": [{"name": "bob", "sha256": HEX}], "spend_caps": {"keys": {"ann": {}}}}, "There are: bob"),
        ({"prices": PRICES, "api_keys": "disabled", "spend_caps": {"per_key": {"day": 1}}}, "there are no API keys"),
        ({"prices": PRICES, "spend_caps": {"each": {"day": 1}}}, "Extra inputs"),
    ],
)
def test_a_cap_that_cannot_be_held_is_refused(serving: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ServingConfig.model_validate(serving)
