"""Score drift: do live scores still look like those that the thresholds were calibrated on? numpy only; runs on router replicas.

The population stability index compares two histograms of B bins with shares e_b (expected) and a_b (actual):

    PSI = sum over b of (a_b - e_b) * ln(a_b / e_b)

(N. Siddiqi, Credit Risk Scorecards, 2006, chapter 9: below 0.1 nothing has changed, above 0.25 much has.) Where nothing has
changed, samples of n and m scores still give (1/n + 1/m) times a chi-square of B - 1 degrees of freedom (B. Yurdakul, Statistical
Properties of the Population Stability Index, 2018): for 20 bins, n = 1,000 and m = 400 a mean of 0.07 and one in a thousand
above 0.15. So 0.25 tells drift from noise, and 0.1 does not.
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray.errors import PolicyError
from firewall_ray.policy import QuantileTable
from serve_app.metrics import NUM_SCORE_BINS, SCORE_BINS

Floats = NDArray[np.float64]

WINDOW = 1_000
RECOMPUTE_EVERY = 250  # scores; the index costs some 20 microseconds, a score between two of them well under one


def population_stability_index(expected: ArrayLike, actual: ArrayLike) -> float:
    """PSI of two histograms, at least 0. expected, actual: counts of scores, (num_bins,), not necessarily of as many scores.

    Half a score is added to each bin of both: an empty bin would make the index infinite, and a small constant share in its
    place would make the index depend on that constant. Raises PolicyError where the histograms are not of one shape, hold
    negative or infinite counts, or no scores.

    >>> round(population_stability_index([50, 50], [75, 25]), 3)
    0.269
    """
    histograms = [np.asarray(counts, dtype=np.float64) for counts in (expected, actual)]
    if histograms[0].ndim != 1 or histograms[0].shape != histograms[1].shape:
        shapes = " and ".join(str(counts.shape) for counts in histograms)
        raise PolicyError(f"PSI: the histograms have shapes {shapes}, must be of the same bins: (num_bins,) both.")
    for name, counts in zip(("expected", "actual"), histograms, strict=True):
        if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0):
            raise PolicyError(f"PSI: {name} must hold counts of scores, none of them negative or infinite and not all of them 0.")
    e, a = ((counts + 0.5) / (counts + 0.5).sum() for counts in histograms)
    return float(np.sum((a - e) * np.log(a / e)))


def calibration_counts(table: QuantileTable) -> Floats:
    """How many calibration scores of a router's card lie in each bin of `SCORE_BINS`. Returns float64, (20,).

    Fractions of a score where the table left scores out: between two kept values it interpolates, as for thresholds. Scores
    beyond [0, 1] count in the first and the last bin.

    >>> calibration_counts(QuantileTable.from_scores([0.05, 0.06, 0.06, 1.0]))[[0, 1, 19]]
    array([1., 2., 1.])
    """
    values, below = np.array(table.values), np.array(table.num_below, dtype=np.float64)
    at_or_below = below + np.array(table.num_at)
    edges = np.array(SCORE_BINS[:-1])
    last = np.searchsorted(values, edges, side="right") - 1  # the last kept value that is not above the edge
    i, following = np.maximum(last, 0), np.minimum(last + 1, len(values) - 1)
    width = values[following] - values[i]
    between = np.divide(edges - values[i], width, out=np.zeros_like(edges), where=width > 0)
    cumulative = np.where(last < 0, 0.0, at_or_below[i] + np.clip(between, 0, 1) * np.maximum(below[following] - at_or_below[i], 0))
    return np.diff(cumulative, prepend=0.0, append=table.num_scores)


class ScoreDrift:
    """The index of the last `window` scores against a card's table. Not for several threads.

    window: scores; the fewer, the more noise (see above). A router whose scores fill few bins has less noise and the same scale.
    """

    def __init__(self, table: QuantileTable, window: int = WINDOW, recompute_every: int = RECOMPUTE_EVERY) -> None:
        self._expected = calibration_counts(table)
        self._recompute_every = recompute_every
        self._bins: list[int] = [-1] * window  # a ring; -1 where nothing was yet
        self._counts = [0] * NUM_SCORE_BINS
        self._num_seen = 0

    def add(self, p_weak: float) -> float | None:
        """Count a live score. Returns the index, at least 0, when it was computed anew: each `recompute_every` scores once the
        window is full; else None.
        """
        place = self._num_seen % len(self._bins)
        left, came = self._bins[place], bisect_left(SCORE_BINS, p_weak, hi=NUM_SCORE_BINS - 1)
        if left >= 0:
            self._counts[left] -= 1
        self._bins[place] = came
        self._counts[came] += 1
        self._num_seen += 1
        if self._num_seen < len(self._bins) or self._num_seen % self._recompute_every:
            return None
        return population_stability_index(self._expected, self._counts)
