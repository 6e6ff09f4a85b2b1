"""The metrics of a router (DESIGN section 4): numpy only, and pure functions.

Everything starts from the *curve*: the mean pass rate (performance) at the strong fractions 0, 0.1, ..., 1, where fraction
f sends the first f of the ranking by `p_weak` to the strong model. f * num_queries need not be an integer: the curve is
linear between whole queries, which is the expectation of routing the query at the boundary by a coin. curve[0] is the weak
model's pass rate and curve[-1] the strong model's, so each metric is a function of the curve alone. Curves may be stacked,
(..., 11), for bootstraps: the metrics then have shape (...).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray import policy
from firewall_ray.errors import EvaluationError

Floats = NDArray[np.float64]

# The strong fractions of the paper's APGR: 0%, 10%, ..., 100% (Sec. 4.1).
FRACTIONS = np.linspace(0.0, 1.0, 11)
# Pass rates are float32 multiples of 1/n: a mean gain below this is rounding, and PGR would divide by it.
MIN_GAP = 1e-7


class UndefinedMetricWarning(UserWarning):
    """A metric has no value here (the strong model is not better, or there are no queries) and is NaN."""


# The curve -----------------------------------------------------------------------------------------------------------


def performance_curve(
    pass_rate_weak: ArrayLike,
    pass_rate_strong: ArrayLike,
    order: NDArray[np.intp],
    fractions: Floats = FRACTIONS,
    counts: NDArray[np.int64] | None = None,
) -> Floats:
    """Mean pass rate when the first f of the ranking goes to the strong model, for every f in `fractions`.

    pass_rate_weak, pass_rate_strong: (num_queries,), in [0, 1]. order: row numbers, from `policy.rank`. counts: how often
    each query counts, (num_queries,); None: once. Returns float64, (len(fractions),); NaN without queries.

    >>> performance_curve([0, 0], [0, 1], np.array([1, 0]), fractions=np.array([0, 0.25, 0.5, 1]))
    array([0.  , 0.25, 0.5 , 0.5 ])
    """
    weak, strong = np.asarray(pass_rate_weak, dtype=np.float64), np.asarray(pass_rate_strong, dtype=np.float64)
    ranked_counts = np.ones(len(order)) if counts is None else counts[order].astype(np.float64)
    total = ranked_counts.sum()
    if total == 0:
        return np.full(len(fractions), np.nan)
    # Both (num_queries + 1,): how many go strong, and what that gains in all, when the first 0, 1, ... of the ranking are sent.
    # A query that counts 0 times adds the same point again, which leaves the interpolation as it is.
    num_strong = np.concatenate(([0.0], np.cumsum(ranked_counts)))
    gain = np.concatenate(([0.0], np.cumsum(ranked_counts * (strong - weak)[order])))
    return ((ranked_counts * weak[order]).sum() + np.interp(fractions * total, num_strong, gain)) / total


def pgr(curve: ArrayLike) -> Floats:
    """Performance gap recovered: (performance - weak) / (strong - weak). (..., 11) to (..., 11); 0 first and 1 last.

    NaN, with an UndefinedMetricWarning, where the strong model is not better than the weak one or there are no queries.
    """
    performance = np.asarray(curve, dtype=np.float64)
    weak, strong = performance[..., :1], performance[..., -1:]
    defined = strong - weak > MIN_GAP  # False for NaN as well
    if not defined.all():
        warnings.warn(
            "The strong model's pass rate is not above the weak one's (or there are no queries): PGR, APGR and CPT are "
            "undefined there and given as NaN.",
            UndefinedMetricWarning,
            stacklevel=2,
        )
    # NaN stays where `where` is False; dividing everywhere would warn, and give infinities.
    return np.divide(performance - weak, strong - weak, out=np.full_like(performance, np.nan), where=defined)


# Metrics of a curve --------------------------------------------------------------------------------------------------


def curve_apgr(curve: ArrayLike) -> Floats:
    """Average PGR: the trapezoid over the 11 points (RouteLLM). Random is 0.5; not bounded by 1, an oracle exceeds it.

    >>> round(float(curve_apgr([10, 16, 22, 27, 31, 34, 37, 39, 41, 42, 43])), 5)
    0.65303
    """
    return np.asarray(np.trapezoid(pgr(curve), FRACTIONS, axis=-1))


def curve_apgr_mean(curve: ArrayLike) -> Floats:
    """The other reading of the paper: the plain mean of the 11 PGR values.

    >>> round(float(curve_apgr_mean([10, 16, 22, 27, 31, 34, 37, 39, 41, 42, 43])), 5)
    0.63912
    """
    return pgr(curve).mean(axis=-1)


def curve_pass_rate(curve: ArrayLike, strong_fraction: float) -> Floats:
    """Performance at a strong fraction in [0, 1], linear between the 11 points.

    >>> float(curve_pass_rate([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.25))
    2.5
    """
    performance = np.asarray(curve, dtype=np.float64)
    position = strong_fraction * (len(FRACTIONS) - 1)
    # At strong fraction 1 the last interval's right end, not an interval beyond it.
    left = min(int(position), len(FRACTIONS) - 2)
    return performance[..., left] + (position - left) * (performance[..., left + 1] - performance[..., left])


def curve_cpt(curve: ArrayLike, share: float) -> Floats:
    """Call-performance threshold: the smallest strong fraction that recovers `share` of the gap; NaN when never reached.

    Linear between the 11 points, like RouteLLM's: on the curve of single queries the first of many noisy crossings would
    come out too small.

    >>> curve = [10, 16, 22, 27, 31, 34, 37, 39, 41, 42, 43]
    >>> [round(float(curve_cpt(curve, share)), 4) for share in (0.2, 0.5, 0.8)]
    [0.11, 0.29, 0.58]
    """
    recovered = pgr(curve)
    # False for NaN, so an undefined PGR reaches nothing.
    reached = recovered >= share
    # (..., 1): the first point that reaches it. argmax is 0 where none does; the last line makes that NaN.
    right = np.argmax(reached, axis=-1)[..., None]
    left = np.maximum(right - 1, 0)
    y_left, y_right = np.take_along_axis(recovered, left, -1), np.take_along_axis(recovered, right, -1)
    # right = 0 where the first point reaches it (a share of 0): there is no interval before it. Else y_left < share <= y_right.
    step = np.divide(share - y_left, y_right - y_left, out=np.zeros_like(y_left), where=right > 0)
    fraction = FRACTIONS[left] + step * (FRACTIONS[right] - FRACTIONS[left])
    return np.where(reached.any(axis=-1), fraction[..., 0], np.nan)


METRICS: dict[str, Callable[[ArrayLike], Floats]] = {
    "apgr": curve_apgr,
    "apgr_mean": curve_apgr_mean,
    **{f"pass_rate_{percent}": partial(curve_pass_rate, strong_fraction=percent / 100) for percent in (20, 50, 80)},
    **{f"cpt_{percent}": partial(curve_cpt, share=percent / 100) for percent in (20, 50, 80)},
}


# From scores ---------------------------------------------------------------------------------------------------------


def evaluate(
    p_weak: ArrayLike, pass_rate_weak: ArrayLike, pass_rate_strong: ArrayLike, query_ids: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Every metric in METRICS of a router's scores, by name. The row order does not matter.

    p_weak, pass_rate_weak, pass_rate_strong: (num_queries,). query_ids: what breaks ties (see `policy.rank`). NaN, with an
    UndefinedMetricWarning, where a metric has no value. Raises EvaluationError where lengths differ or a pass rate is not
    in [0, 1], PolicyError on a score that is not finite.
    """
    weak, strong = checked_pass_rates(pass_rate_weak, pass_rate_strong, query_ids)
    curve = performance_curve(weak, strong, policy.rank(p_weak, query_ids, seed))
    return {name: float(metric(curve)) for name, metric in METRICS.items()}


def apgr(
    p_weak: ArrayLike, pass_rate_weak: ArrayLike, pass_rate_strong: ArrayLike, query_ids: Sequence[str], seed: int = 0
) -> float:
    """APGR of a router's scores; see `evaluate` and `curve_apgr`.

    >>> apgr([0.1, 0.9], [0, 1], [1, 1], ["a", "b"])  # the one query worth a strong call comes first
    0.75
    """
    weak, strong = checked_pass_rates(pass_rate_weak, pass_rate_strong, query_ids)
    return float(curve_apgr(performance_curve(weak, strong, policy.rank(p_weak, query_ids, seed))))


def checked_pass_rates(pass_rate_weak: ArrayLike, pass_rate_strong: ArrayLike, query_ids: Sequence[str]) -> tuple[Floats, Floats]:
    """Both as float64, (num_queries,). Raises EvaluationError where lengths differ or a value is not in [0, 1]."""
    rates = []
    for name, given in (("pass_rate_weak", pass_rate_weak), ("pass_rate_strong", pass_rate_strong)):
        values = np.asarray(given, dtype=np.float64)
        if values.shape != (len(query_ids),):
            raise EvaluationError(f"{name} has shape {values.shape}, but there are {len(query_ids)} query ids.")
        # Negated, so that NaN is wrong too.
        wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if len(wrong):
            raise EvaluationError(f"{name} is {values[wrong[0]]} for query {query_ids[wrong[0]]!r}; a pass rate lies in [0, 1].")
        rates.append(values)
    return rates[0], rates[1]


def oracle_p_weak(pass_rate_weak: ArrayLike, pass_rate_strong: ArrayLike) -> Floats:
    """(1 - gain) / 2 with gain = pass_rate_strong - pass_rate_weak, in [0, 1]: no ranking has a higher curve anywhere.

    >>> oracle_p_weak([0.0, 1.0, 0.5], [1.0, 0.0, 0.5])
    array([0. , 1. , 0.5])
    """
    gain = np.asarray(pass_rate_strong, dtype=np.float64) - np.asarray(pass_rate_weak, dtype=np.float64)
    return (1 - gain) / 2
