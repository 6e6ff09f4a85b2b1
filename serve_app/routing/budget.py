"""The strong fraction of live traffic, held within 2 points of its target however the traffic drifts from the calibration sample.

Two things hold it. The threshold is a quantile of the last `window` scores (in the beginning the calibration sample's, which
live ones displace), so queries still go strong by rank, among the traffic that there is. And the fraction that the threshold
is set for leans against what has gone wrong so far:

    surplus   = strong decisions - target * decisions
    effective = target - max_step * surplus, within [0, 1]

Nothing goes strong at 0 and everything at 1, whatever its score, so the surplus stays in an interval of width 1/max_step + 1.
With max_step = 1 / (0.02 * window - 1) that is 2% of a window. Hence, with no assumption about the traffic and from the first
request on: over any `window` decisions in a row, the realised fraction is within 2 points of the target. It is of answers, not of
intentions: what the strong model answers in the weak one's place counts, and has to have room (`may_stand_in`).

What it costs: on traffic like the calibration sample the effective fraction wanders around the target, with a standard
deviation of sqrt(max_step * target * (1 - target) / 2): 8 points at a window of 1,000 and the target 0.5, and less with a
longer window. That is quality lost in second order only; benchmarks/budget_control.py measures it.

Deterministic: the same scores in the same order meet the same thresholds. The comparison itself stays in `policy`. Runs on router
replicas.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque

import numpy as np

from firewall_ray.errors import PolicyError
from firewall_ray.policy import QuantileTable, Threshold

TOLERANCE = 0.02
MIN_WINDOW = 200
MAX_TARGETS = 64  # strong fractions with a memory of their own; beyond, the one that was longest not asked for is forgotten


class ScoreWindow:
    """The last `size` scores. It begins full: with as many quantiles of the calibration sample, in a fixed random order."""

    def __init__(self, size: int, calibration: QuantileTable) -> None:
        quantiles = [calibration.threshold((i + 0.5) / size).value for i in range(size)]
        self._sorted = quantiles.copy()  # a quantile grows with its fraction
        # Lowest first, the lowest would be displaced first, and every quantile would climb without any change in the traffic.
        self._in_order = deque(quantiles[i] for i in np.random.default_rng(0).permutation(size))

    def add(self, p_weak: float) -> None:
        """In place of the oldest. p_weak: finite."""
        del self._sorted[bisect_left(self._sorted, self._in_order.popleft())]
        insort(self._sorted, p_weak)
        self._in_order.append(p_weak)

    def threshold(self, strong_fraction: float) -> Threshold:
        """As `QuantileTable.threshold` of these scores, without a table: this one changes with every request."""
        if strong_fraction in (0.0, 1.0):
            # Exactly none and exactly all, as offline: a live score may lie beyond every one in the window.
            return Threshold(math.inf if strong_fraction else -math.inf, 0.0, strong_fraction)
        wanted = strong_fraction * len(self._sorted)
        value = self._sorted[min(int(wanted), len(self._sorted) - 1)]
        num_below = bisect_left(self._sorted, value)
        num_at = bisect_right(self._sorted, value) - num_below
        # Of the scores that are equal to the threshold, the share that still has to go strong.
        return Threshold(value, (wanted - num_below) / num_at, strong_fraction)


class Budget:
    """How one target was kept. target: strong fraction, in [0, 1]. window: decisions that `realised` looks back."""

    def __init__(self, target: float, window: int) -> None:
        self.target = target
        self._recent: deque[bool] = deque(maxlen=window)
        self._num_recent_strong = 0
        self._num_strong = 0
        self._num_decisions = 0

    @property
    def surplus(self) -> float:
        """Strong decisions too many since the beginning; negative: too few."""
        return self._num_strong - self.target * self._num_decisions

    @property
    def realised(self) -> float | None:
        """Strong share of the last decisions, at most `window`, in [0, 1]. None before the first."""
        return self._num_recent_strong / len(self._recent) if self._recent else None

    def add(self, is_strong: bool) -> None:
        if len(self._recent) == self._recent.maxlen:
            self._num_recent_strong -= self._recent[0]
        self._recent.append(is_strong)
        self._num_recent_strong += is_strong
        self._num_strong += is_strong
        self._num_decisions += 1

    def correct(self, is_strong: bool) -> None:
        """A decision that was added was answered by the other model: strong now, or weak."""
        for i in range(len(self._recent) - 1, -1, -1):  # whichever it was, it is among the last
            if self._recent[i] != is_strong:
                self._recent[i] = is_strong
                self._num_recent_strong += 1 if is_strong else -1
                break
        self._num_strong += 1 if is_strong else -1


class BudgetController:
    """Thresholds that hold what is asked for. Targets share the window of scores; each has its own surplus.

    window: decisions over which a target is held, at least 200. default: the target whose memory is never dropped; may be set
    anew at any time. Raises PolicyError for a shorter window: 2% of it are too few decisions to steer by.
    """

    def __init__(self, calibration: QuantileTable, window: int, default: float) -> None:
        if window < MIN_WINDOW:
            raise PolicyError(f"budget_control.window is {window}, must be at least {MIN_WINDOW} decisions.")
        self.default = default
        self._window = window
        self.max_step = 1 / (TOLERANCE * window - 1)
        self._scores = ScoreWindow(window, calibration)
        self._budgets: OrderedDict[float, Budget] = OrderedDict()

    def threshold(self, target: float) -> Threshold:
        """Where to cut now; its `strong_fraction` is the effective one. target: in [0, 1], of which 0 and 1 are exact.

        From one request to the next of a target, the effective fraction moves by at most `max_step`.
        """
        return self._scores.threshold(self._effective(target))

    def record(self, target: float, p_weak: float, is_strong: bool) -> None:
        """One request, decided at `threshold(target)`. p_weak: the score that decided, finite."""
        self._scores.add(p_weak)
        self.budget(target).add(is_strong)

    def may_stand_in(self, target: float, *, is_counted: bool) -> bool:
        """Whether the strong model may answer a request that went weak, whose model gives no answer; if so, it counts as strong.

        Never at the target 0, and never when nothing goes strong by its score either, so the bound stays what it is. Up to half of
        what may go strong: were it all, none would be left for those that need it most. is_counted: as a decision, for weak.
        """
        if self._effective(target) <= target / 2:
            return False
        self.settle(target, is_strong=True, is_counted=is_counted)
        return True

    def settle(self, target: float, *, is_strong: bool, is_counted: bool) -> None:
        """A request was answered otherwise than it was decided (is_counted), or without a decision."""
        if not is_counted:
            self.budget(target).add(is_strong)
        elif is_strong or self._effective(target) < 1:
            # Else everything goes strong already: a deficit that grew through an outage would afterwards be spent at once.
            self.budget(target).correct(is_strong)

    def _effective(self, target: float) -> float:
        return min(1.0, max(0.0, target - self.max_step * self.budget(target).surplus))

    def budget(self, target: float) -> Budget:
        """The memory of a target, a new one where there is none."""
        if target not in self._budgets:
            if len(self._budgets) == MAX_TARGETS:
                del self._budgets[next(each for each in self._budgets if each != self.default)]
            self._budgets[target] = Budget(target, self._window)
        self._budgets.move_to_end(target)
        return self._budgets[target]
