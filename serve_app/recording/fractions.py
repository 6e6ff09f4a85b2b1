"""The strong fraction of the last routed requests, beside the one that was asked for. Lives in an ingress replica."""

import math
from collections import deque

from serve_app.recording.exchange import Exchange

WINDOW = 1_000
MIN_REQUESTS = 30  # of fewer, the standard error says little


class RecentFractions:
    """Over the last `WINDOW` requests that a score decided, those of sticky conversations and of shadow mode included."""

    def __init__(self) -> None:
        self._recent: deque[tuple[bool, float]] = deque()
        self._num_strong = 0
        self._sum_targets = 0.0

    def add(self, exchange: Exchange) -> None:
        """Does nothing where no score decided."""
        if exchange.decided is None or exchange.decision is None:
            return
        if len(self._recent) == WINDOW:
            was_strong, target = self._recent.popleft()
            # Running sums: adding up a thousand at each request would be felt. What rounding leaves is far below what is shown.
            self._num_strong -= was_strong
            self._sum_targets -= target
        # Where a score decided there is a strong_fraction; 0.0 is for the type checker.
        is_strong, target = exchange.decided == "strong", exchange.decision.strong_fraction or 0.0
        self._recent.append((is_strong, target))
        self._num_strong += is_strong
        self._sum_targets += target

    @property
    def realised(self) -> float | None:
        """Share that the scores sent to the strong model, in [0, 1]; None before the first."""
        return self._num_strong / len(self._recent) if self._recent else None

    @property
    def target(self) -> float | None:
        """Mean of the strong fractions in force for these same requests, in [0, 1]; None before the first."""
        return self._sum_targets / len(self._recent) if self._recent else None

    @property
    def is_off_target(self) -> bool:
        """Whether they are further apart than 2 points, and than 3 standard errors of a share of so many requests."""
        num = len(self._recent)
        if num < MIN_REQUESTS:
            return False
        target = self._sum_targets / num
        # Where targets differ, this is a little more than their standard error.
        standard_error = math.sqrt(max(0.0, target * (1 - target)) / num)
        return abs(self._num_strong / num - target) > max(0.02, 3 * standard_error)
