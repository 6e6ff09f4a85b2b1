"""The numbers behind the page: what one ingress replica has seen since it started, as GET /stats answers it.

Runs in the ingress' event loop, which alone writes and reads. Ray's metrics have the same over all replicas.
"""

import time
from collections import Counter, deque
from typing import Any

from firewall_ray.config.serving import Route
from serve_app.money.balance import Balance
from serve_app.recording.arms import LATENCY_WINDOW, ArmsSeen, percentiles
from serve_app.recording.exchange import Exchange
from serve_app.recording.fractions import RecentFractions
from serve_app.recording.last_decisions import LastDecisions

ROUTES: tuple[Route, ...] = ("weak", "strong")


class LiveCounters:
    """An observer. is_priced: there are prices. holds_budget: budget control is on. keeps_text: texts may be shown to whoever sent
    them. replica: the name that the snapshot carries.
    """

    def __init__(
        self, *, is_priced: bool = False, holds_budget: bool = False, keeps_text: bool = False, replica: str = "local"
    ) -> None:
        self._replica = replica
        self._holds_budget = holds_budget
        self._began = time.time()
        self._num_requests = 0
        self._by_route: Counter[str] = Counter()
        self._by_reason: Counter[str] = Counter()
        self._by_status: Counter[str] = Counter()
        self._decided: Counter[str] = Counter()
        self._num_fallbacks = 0
        self._num_avoided = 0
        self._saving_usd = 0.0
        self._balance = Balance() if is_priced else None
        # All of them from the beginning, so that the page need not ask whether there is one.
        self._tokens: dict[Route, Counter[str]] = {route: Counter(prompt=0, completion=0) for route in ROUTES}
        self._fractions = RecentFractions()
        self._arms = ArmsSeen()
        self._last = LastDecisions(keeps_text=keeps_text)
        self._total_s: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._router_s: deque[float] = deque(maxlen=LATENCY_WINDOW)

    def record(self, exchange: Exchange) -> None:
        """As the protocol says."""
        self._num_requests += 1
        self._by_status[str(exchange.status)] += 1
        self._num_fallbacks += exchange.fallback is not None
        self._fractions.add(exchange)
        self._arms.add(exchange)
        self._last.add(exchange)
        if exchange.decision is not None:
            self._by_reason[exchange.decision.reason] += 1
        if exchange.decided is not None:
            self._decided[exchange.decided] += 1
        if exchange.router_latency_s is not None:
            self._router_s.append(exchange.router_latency_s)
        if exchange.answered_by is not None:
            self._by_route[exchange.answered_by] += 1
            if exchange.usage is not None:
                self._tokens[exchange.answered_by]["prompt"] += exchange.usage.prompt_tokens
                self._tokens[exchange.answered_by]["completion"] += exchange.usage.completion_tokens
            if exchange.status == 200 and exchange.total_s is not None:
                self._total_s.append(exchange.total_s)
        if exchange.avoided_strong_call:
            self._num_avoided += 1
            self._saving_usd += exchange.saved_usd or 0.0
        if self._balance is not None:
            self._balance.add(exchange)

    def snapshot(self, key_name: str | None = None) -> dict[str, Any]:
        """JSON. Counts since `since` (Unix seconds); fractions and latencies (seconds) over the last 1,000 requests they
        are known of, None before the first. by_route: who answered. routed: a score decided, chosen: what it said.
        traffic_differs: from the calibration set, as the share says that no budget control holds. money: None without prices.
        arms: None without a canary. last_decisions: of who asks, whose key has the name key_name.
        """
        return {
            "replica": self._replica,
            "since": self._began,
            "requests": self._num_requests,
            "by_status": dict(self._by_status),
            "by_route": {route: self._by_route[route] for route in ROUTES},
            "by_reason": dict(self._by_reason),
            "routed": self._decided.total(),
            "chosen": {route: self._decided[route] for route in ROUTES},
            "strong_fraction": self._fractions.realised,
            "target_strong_fraction": self._fractions.target,
            "traffic_differs": self._fractions.is_off_target and not self._holds_budget,
            "arms": self._arms.snapshot(),
            "fallbacks": self._num_fallbacks,
            "strong_calls_avoided": self._num_avoided,
            "estimated_saving_usd": None if self._balance is None else self._saving_usd,
            "money": None if self._balance is None else self._balance.snapshot(key_name),
            "tokens": {route: dict(counts) for route, counts in self._tokens.items()},
            "latency_s": percentiles(self._total_s),
            "router_s": percentiles(self._router_s),
            "last_decisions": self._last.of(key_name),
        }
