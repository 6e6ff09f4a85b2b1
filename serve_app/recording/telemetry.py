"""Every metric of the serving application: its name, tags and meaning, and what an ingress replica records in it.

Ray exports them as Prometheus metrics, with `ray_` before the name and, for counters, `_total` behind, and adds the tags
`application`, `deployment` and `replica`. Values of tags are from closed sets: names of the config, never what a client sent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ray.serve.metrics import Counter, Gauge, Histogram

from firewall_ray.serving_config import PriceConfig, Route
from serve_app.recording.exchange import Exchange
from serve_app.recording.fractions import RecentFractions
from serve_app.routing.drift import SCORE_BINS

Record = Callable[[str, float, dict[str, str]], None]
NONE = "none"  # the value of a tag that has none


@dataclass(frozen=True)
class Metric:
    """bounds: upper ends of a histogram's bins, which belong to the bin below them."""

    kind: Literal["counter", "gauge", "histogram"]
    tags: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0, 600.0)

METRICS: dict[str, Metric] = {
    "firewall_requests": Metric(
        "counter",
        ("endpoint", "route", "reason", "status", "key"),
        "Chats and completions. route: the model that answered; reason: who decided so; status: HTTP, 499 when the client left, "
        "502 when the model failed in the middle of a stream; key: name of the API key.",
    ),
    "firewall_router_score": Metric(
        "histogram", ("router",), "p_weak, by the router's version. Below the threshold it goes to the strong model.", SCORE_BINS
    ),
    "firewall_score_drift": Metric(
        "gauge",
        (),
        "Population stability index of a router replica's last 1,000 scores against those that its card was calibrated on; 0 until "
        "there are 1,000. Above 0.25 the router sees other traffic than it was trained for.",
    ),
    "firewall_router_s": Metric(
        "histogram", ("reason",), "Seconds from a request's arrival to the router's decision, or to giving it up.", SECONDS
    ),
    "firewall_queue_s": Metric(
        "histogram", ("route",), "Seconds on the way to a model's replica and waiting there. Not known of remote models.", SECONDS
    ),
    "firewall_first_token_s": Metric(
        "histogram", ("route",), "Seconds from arrival to the first token, of answers that are streamed.", SECONDS
    ),
    "firewall_total_s": Metric("histogram", ("route",), "Seconds from arrival to the last byte, of whole answers.", SECONDS),
    "firewall_tokens": Metric("counter", ("route", "kind"), "Tokens of the answers of each model; kind: prompt or completion."),
    "firewall_strong_fraction": Metric(
        "gauge", (), "Share that scores sent to the strong model, of this replica's last 1,000 routed requests."
    ),
    "firewall_target_strong_fraction": Metric("gauge", (), "Mean of the strong fractions asked for by these same requests."),
    "firewall_budget": Metric(
        "gauge",
        ("fraction",),
        "Under serving.budget_control, of a router replica's decisions for the model `firewall`. target: the strong fraction asked "
        "for; realised: of the last window; effective: what the threshold is set for, in order to hold it.",
    ),
    "firewall_router_config_refused": Metric(
        "gauge", (), "1 while a router replica runs as before because its new user_config could not be applied; its log says why."
    ),
    "firewall_strong_calls_avoided": Metric(
        "counter", (), "Requests that the weak model answered because a score said that it can."
    ),
    "firewall_estimated_saving_usd": Metric(
        "counter",
        (),
        "US dollars that these saved: the weak answer's tokens at the strong price less those at the weak. Needs serving.prices; "
        "an answer that is dearer at the weak price counts as 0.",
    ),
    "firewall_fallbacks": Metric(
        "counter", ("from", "to", "cause"), "Requests whose chosen model gave no answer. to: none where the other gave none either."
    ),
    "firewall_refusals": Metric("counter", ("status",), "Requests turned away at admission: no key, too large, too many."),
    "firewall_client_disconnects": Metric("counter", ("endpoint",), "Clients that left before the last byte of their answer."),
    "firewall_decision_log_rows": Metric(
        "counter", ("outcome",), "Rows of the decision log: written, or dropped because storage failed or was too slow."
    ),
}


class RayMetrics:
    """Records into Ray's metrics: some microseconds a call, in memory; Ray collects them in the background."""

    def __init__(self) -> None:
        self._record: dict[str, Callable[[float, dict[str, str]], None]] = {
            name: _recorder(name, metric) for name, metric in METRICS.items()
        }

    def __call__(self, name: str, value: float, tags: dict[str, str]) -> None:
        self._record[name](value, tags)


def _recorder(name: str, metric: Metric) -> Callable[[float, dict[str, str]], None]:
    if metric.kind == "histogram":
        return Histogram(name, metric.meaning, list(metric.bounds), metric.tags).observe
    if metric.kind == "gauge":
        return Gauge(name, metric.meaning, metric.tags).set
    return Counter(name, metric.meaning, metric.tags).inc


class Telemetry:
    """An observer. prices: of both models, for the estimated saving."""

    def __init__(self, prices: Mapping[Route, PriceConfig], record: Record | None = None) -> None:
        self._prices = prices
        self._record: Record = RayMetrics() if record is None else record
        self._fractions = RecentFractions()

    def record(self, exchange: Exchange) -> None:
        """As the protocol says."""
        route = exchange.answered_by
        reason = exchange.decision.reason if exchange.decision else NONE
        self._record(
            "firewall_requests",
            1,
            {
                "endpoint": exchange.endpoint,
                "route": route or NONE,
                "reason": reason,
                "status": str(exchange.status),
                "key": exchange.key_name or NONE,
            },
        )
        if exchange.router_latency_s is not None:
            self._record("firewall_router_s", exchange.router_latency_s, {"reason": reason})
        if exchange.decided is not None:
            self._record_score(exchange)
        if exchange.fallback is not None and exchange.decision is not None:
            tags = {"from": exchange.decision.route, "to": route or NONE, "cause": exchange.fallback}
            self._record("firewall_fallbacks", 1, tags)
        if exchange.client_left:
            self._record("firewall_client_disconnects", 1, {"endpoint": exchange.endpoint})
        if route is not None:
            self._record_answer(exchange, route)

    def refused(self, status: int) -> None:
        """A request that was not let in. status: HTTP."""
        self._record("firewall_refusals", 1, {"status": str(status)})

    def logged(self, outcome: Literal["written", "dropped"], num_rows: int) -> None:
        """What became of rows of the decision log. Called from its thread too."""
        self._record("firewall_decision_log_rows", num_rows, {"outcome": outcome})

    def _record_score(self, exchange: Exchange) -> None:
        """What a score said, and what that share comes to."""
        decision = exchange.decision
        assert decision is not None
        assert decision.score is not None
        if decision.reason != "sticky":  # that score was counted when the conversation began
            self._record("firewall_router_score", decision.score, {"router": decision.router or NONE})
        self._fractions.add(exchange)
        if self._fractions.realised is not None and self._fractions.target is not None:
            self._record("firewall_strong_fraction", self._fractions.realised, {})
            self._record("firewall_target_strong_fraction", self._fractions.target, {})

    def _record_answer(self, exchange: Exchange, route: Route) -> None:
        """How long it took, where it is whole, and what it came to."""
        tags: dict[str, str] = {"route": route}
        if exchange.queue_s is not None:
            self._record("firewall_queue_s", exchange.queue_s, tags)
        if exchange.streams and exchange.first_byte_s is not None:
            self._record("firewall_first_token_s", exchange.first_byte_s, tags)
        if exchange.status == 200 and exchange.total_s is not None:
            self._record("firewall_total_s", exchange.total_s, tags)
        if exchange.usage is not None:
            for kind, num_tokens in (("prompt", exchange.usage.prompt_tokens), ("completion", exchange.usage.completion_tokens)):
                self._count("firewall_tokens", num_tokens, {**tags, "kind": kind})
        if exchange.avoided_strong_call:
            self._count("firewall_strong_calls_avoided", 1, {})
            self._count("firewall_estimated_saving_usd", exchange.saving_usd(self._prices), {})

    def _count(self, name: str, value: float, tags: dict[str, str]) -> None:
        """Ray's counters refuse to stay as they are."""
        if value > 0:
            self._record(name, value, tags)


def markdown_table() -> str:
    """The metrics as docs/serving.md lists them, by the names that Prometheus shows."""
    rows = ["| metric | type | tags | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        exported = f"ray_{name}_total" if metric.kind == "counter" else f"ray_{name}"
        rows.append(f"| `{exported}` | {metric.kind} | {', '.join(metric.tags)} | {metric.meaning} |")
    return "\n".join(rows)
