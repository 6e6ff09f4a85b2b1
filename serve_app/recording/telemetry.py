"""What an ingress replica records in its metrics, from the exchanges that are over."""

from typing import Literal

from firewall_ray.config.serving import Route
from serve_app.metrics import RayMetrics, Record
from serve_app.money.balance import Balance
from serve_app.recording.exchange import Exchange
from serve_app.recording.fractions import RecentFractions

NONE = "none"  # the value of a tag that has none


class Telemetry:
    """An observer."""

    def __init__(self, record: Record | None = None) -> None:
        self._record: Record = RayMetrics() if record is None else record
        self._fractions = RecentFractions()
        self._balance = Balance()

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
        if exchange.cost_usd is not None:
            self._record_money(exchange, exchange.cost_usd)

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
        # Of what failed, the time says when it failed.
        if exchange.status == 200 and exchange.total_s is not None:
            self._record("firewall_total_s", exchange.total_s, tags)
        if exchange.usage is not None:
            for kind, num_tokens in (("prompt", exchange.usage.prompt_tokens), ("completion", exchange.usage.completion_tokens)):
                self._count("firewall_tokens", num_tokens, {**tags, "kind": kind, "key": exchange.key_name or NONE})
        if exchange.avoided_strong_call:
            self._count("firewall_strong_calls_avoided", 1, {})

    def _record_money(self, exchange: Exchange, cost_usd: float) -> None:
        tags = {"endpoint": exchange.endpoint, "route": exchange.asked or NONE, "key": exchange.key_name or NONE}
        self._count("firewall_cost_usd", cost_usd, tags)
        # May be negative, where the prices say so; a counter cannot fall.
        self._count("firewall_estimated_saving_usd", exchange.saved_usd or 0.0, {"key": exchange.key_name or NONE})
        self._balance.add(exchange)
        if (saved := self._balance.saved()) is not None:
            for bound, usd in vars(saved).items():
                self._record("firewall_saved_usd_per_1000_requests", usd, {"bound": bound})

    def _count(self, name: str, value: float, tags: dict[str, str]) -> None:
        """Ray's counters refuse to stay as they are."""
        if value > 0:
            self._record(name, value, tags)
