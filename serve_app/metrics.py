"""Every metric of the serving application: its name, tags and meaning. Recorded on ingress and on router replicas.

Ray exports them as Prometheus metrics, with `ray_` before the name and, for counters, `_total` behind, and adds the tags
`application`, `deployment` and `replica`. Values of tags are from closed sets: names of the config, never what a client sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Record = Callable[[str, float, dict[str, str]], None]


@dataclass(frozen=True)
class Metric:
    """bounds: upper ends of a histogram's bins, which belong to the bin below them."""

    kind: Literal["counter", "gauge", "histogram"]
    tags: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


NUM_SCORE_BINS = 20
SCORE_BINS = tuple(i / NUM_SCORE_BINS for i in range(1, NUM_SCORE_BINS + 1))
# From a router's millisecond to the ten minutes of a long answer, two to three steps a decade.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0, 600.0)

METRICS: dict[str, Metric] = {
    "firewall_requests": Metric(
        "counter",
        ("endpoint", "route", "reason", "status", "key"),
        "Chats and completions. endpoint: chat, completions, responses or messages; route: the model that answered; reason: who "
        "decided so; status: HTTP, 499 when the client left, 502 when the model failed in the middle of a stream; key: name of the "
        "API key.",
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
    "firewall_tokens": Metric(
        "counter",
        ("route", "kind", "key"),
        "Tokens of the answers of each model; kind: prompt or completion; key: name of the API key. Of streams that were cut off, "
        "those that were sent, and an estimate of the prompt's.",
    ),
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
    "firewall_cost_usd": Metric(
        "counter",
        ("endpoint", "route", "key"),
        "US dollars that answers cost by serving.prices. route: the model that answered, or was to when the client left.",
    ),
    "firewall_estimated_saving_usd": Metric(
        "counter",
        ("key",),
        "US dollars that these saved: the weak answer's tokens at the strong price less its cost. Needs serving.prices; an answer "
        "that is dearer at the weak price counts as 0.",
    ),
    "firewall_saved_usd_per_1000_requests": Metric(
        "gauge",
        ("bound",),
        "US dollars saved against the strong model for all, per 1,000 requests that a score decided, of this replica since it "
        "started. bound: value, and low and high of its 95% interval.",
    ),
    "firewall_spent_usd": Metric(
        "gauge",
        ("key", "period"),
        "Under serving.spend_caps, US dollars spent in this day or month (UTC; period) over all ingress replicas. key: name of the "
        "API key, * for all requests together.",
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
    # Here, since loading it takes seconds: whoever only asks for names and bins (the dashboard, the drift index) needs no Ray.
    from ray.serve.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(name, metric.meaning, list(metric.bounds), metric.tags).observe
    if metric.kind == "gauge":
        return Gauge(name, metric.meaning, metric.tags).set
    return Counter(name, metric.meaning, metric.tags).inc


def markdown_table() -> str:
    """The metrics as docs/serving.md lists them, by the names that Prometheus shows."""
    rows = ["| metric | type | tags | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        exported = f"ray_{name}_total" if metric.kind == "counter" else f"ray_{name}"
        rows.append(f"| `{exported}` | {metric.kind} | {', '.join(metric.tags)} | {metric.meaning} |")
    return "\n".join(rows)
