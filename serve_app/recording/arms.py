"""The router that decides beside its canary, as GET /stats compares them. Lives in an ingress replica."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from serve_app.money.balance import Account
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Arm

LATENCY_WINDOW = 1_000


class ArmCounters:
    """Of requests that a score decided."""

    def __init__(self) -> None:
        self._num_requests = 0
        self._num_strong = 0
        self._num_failed = 0
        self._sum_targets = 0.0
        self._router: str | None = None
        self._account = Account()
        self._total_s: deque[float] = deque(maxlen=LATENCY_WINDOW)

    def add(self, exchange: Exchange) -> None:
        decision = exchange.decision
        assert decision is not None
        self._num_requests += 1
        self._num_strong += exchange.decided == "strong"
        self._num_failed += exchange.status >= 500
        self._sum_targets += decision.strong_fraction or 0.0
        self._router = decision.router
        if exchange.cost_usd is not None:
            self._account.add(exchange.cost_usd)
        if exchange.status == 200 and exchange.total_s is not None:
            self._total_s.append(exchange.total_s)

    def as_json(self) -> dict[str, Any]:
        """Fractions in [0, 1], seconds and US dollars; None where nothing is known yet. router: the version that decided last."""
        num = self._num_requests
        return {
            "router": self._router,
            "requests": num,
            "failed": self._num_failed,
            "strong_fraction": self._num_strong / num if num else None,
            "target_strong_fraction": self._sum_targets / num if num else None,
            "usd_per_1000_requests": self._account.as_json()["usd_per_1000_requests"],
            "latency_s": percentiles(self._total_s),
        }


class ArmsSeen:
    """Of both arms, from the canary's first request on: what was before is no comparison."""

    def __init__(self) -> None:
        self._arms: dict[Arm, ArmCounters] | None = None

    def add(self, exchange: Exchange) -> None:
        """Does nothing where no score decided."""
        if exchange.decision is None or exchange.decided is None:
            return
        if self._arms is None:
            if exchange.decision.arm == "main":
                return
            self._arms = {"main": ArmCounters(), "canary": ArmCounters()}
        self._arms[exchange.decision.arm].add(exchange)

    def snapshot(self) -> dict[str, Any] | None:
        """None where no canary was met."""
        return None if self._arms is None else {arm: counters.as_json() for arm, counters in self._arms.items()}


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Nearest rank: the smallest value that so many percent do not exceed. None of no values.

    >>> percentiles([0.3, 0.1, 0.2])
    {'p50': 0.2, 'p90': 0.3}
    """
    ordered = sorted(values)
    # -(-a // b) is a / b rounded up, in whole numbers.
    return {f"p{p}": ordered[-(-len(ordered) * p // 100) - 1] if ordered else None for p in (50, 90)}
