"""Bootstrap confidence intervals over queries (Efron's percentile method), for one router and for the difference of two.

A resample draws as many queries as there are, with replacement. It enters as *counts*, how often each query was drawn, so
that no ranking is sorted again: the copies of a query stand together in the order that is already known. What no resample
changes, the gains in a ranking's order, is gathered once for BATCH of them. Beside the rankings that is at most 80 bytes a query,
however many resamples and routers there are.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray.errors import EvaluationError
from firewall_ray.evaluation.metrics import FRACTIONS, METRICS, UndefinedMetricWarning

Floats = NDArray[np.float64]

BATCH = 16  # resamples whose counts are held at the same time, nearly always a byte a query each


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval. num_undefined: resamples without a value (strong <= weak), left out."""

    value: float
    low: float
    high: float
    num_undefined: int = 0


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference. p_value: two-sided, from the share of resamples on the other side of 0; at least 2 / (B + 1)."""

    p_value: float = float("nan")


def percentile_interval(value: float, resampled: ArrayLike, confidence: float = 0.95) -> Interval:
    """The middle `confidence` of the resampled values, NaN left out and counted. resampled: (num_resamples,).

    NaN bounds where no resample has a value. Raises EvaluationError where confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise EvaluationError(f"confidence is {confidence}, must lie between 0 and 1, such as 0.95.")
    values = np.asarray(resampled, dtype=np.float64)
    defined = values[~np.isnan(values)]
    num_undefined = len(values) - len(defined)
    if np.isnan(value) or not len(defined):
        return Interval(float(value), float("nan"), float("nan"), num_undefined)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high), num_undefined)


def bootstrap_curves(
    pass_rate_weak: ArrayLike,
    pass_rate_strong: ArrayLike,
    orders: Mapping[str, NDArray[np.intp] | None],
    num_resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Floats]:
    """The curves of every router on the same resamples of the queries, which is what makes comparisons paired.

    orders: each router's ranking; None stands for random routing, which is shuffled anew in each resample. Rows must come
    in an order of their own, such as by query id, for results that do not depend on how a file was written.
    Returns float64, (num_resamples, 11), by router.
    """
    weak, strong = np.asarray(pass_rate_weak, dtype=np.float64), np.asarray(pass_rate_strong, dtype=np.float64)
    num_queries, gain = len(weak), strong - weak
    if not num_queries:
        return {name: np.full((num_resamples, len(FRACTIONS)), np.nan) for name in orders}
    draws, shuffles = (np.random.default_rng(child) for child in np.random.SeedSequence([seed < 0, abs(seed)]).spawn(2))
    of_weak = np.empty((num_resamples, 1))  # the weak model's sum is the same in every ranking
    gained = {name: np.empty((num_resamples, len(FRACTIONS))) for name in orders}
    for start in range(0, num_resamples, BATCH):
        batch: dict[int, NDArray[np.integer]] = {}
        for b in range(start, min(start + BATCH, num_resamples)):
            drawn = np.bincount(draws.integers(num_queries, size=num_queries), minlength=num_queries)
            of_weak[b] = (drawn * weak).sum()
            # Narrow counts stay in the processor's cache, and a ranking reads them in no order.
            batch[b] = drawn.astype(np.min_scalar_type(drawn.max()))
            for name in (name for name, order in orders.items() if order is None):
                shuffled = shuffles.permutation(num_queries)
                gained[name][b] = _gained(batch[b].take(shuffled), gain.take(shuffled))
        for name, order in orders.items():
            if order is not None:
                ranked_gain = gain.take(order)
                for b, counts in batch.items():
                    gained[name][b] = _gained(counts.take(order), ranked_gain)
    return {name: (of_weak + each) / num_queries for name, each in gained.items()}


def _gained(counts: NDArray[np.integer], gain: Floats) -> Floats:
    """What the first f of a ranking gains over the weak model in sum, for every f of FRACTIONS: float64, (11,).

    counts, gain: in the ranking's order, (num_queries,). As `performance_curve` has it, but the gains are added up between the
    fractions only: running sums of all of them are ten times the work.
    """
    drawn = np.cumsum(counts, dtype=np.int64 if len(counts) > np.iinfo(np.int32).max else np.int32)
    wanted = FRACTIONS * drawn[-1]
    rows = np.searchsorted(drawn, wanted)  # the queries in which the fractions end
    gains = counts * gain
    between = np.add.reduceat(gains, rows)[:-1]
    between[rows[1:] == rows[:-1]] = 0  # where reduceat gives the one element instead
    before = np.concatenate(([0.0], np.cumsum(between)))
    return before + (wanted - (drawn[rows] - counts[rows])) * gain[rows]


def intervals(curve: ArrayLike, resampled: Floats, confidence: float = 0.95) -> dict[str, Interval]:
    """Every metric in METRICS with its interval. curve: (11,), of all queries; resampled: (num_resamples, 11)."""
    found = {}
    for name, metric in METRICS.items():
        value = float(metric(curve))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # counted instead
            found[name] = percentile_interval(value, metric(resampled), confidence)
    return found


def paired_bootstrap(
    metric: str, curve: ArrayLike, other: ArrayLike, resampled: Floats, resampled_other: Floats, confidence: float = 0.95
) -> Difference:
    """The difference `curve` minus `other` in a metric of METRICS, where both were resampled together.

    An interval that lies above 0 says that the first router is better beyond the chance of having drawn these queries.
    """
    function = METRICS[metric]
    value = float(function(curve)) - float(function(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        differences = function(resampled) - function(resampled_other)
    return paired_values(value, differences, confidence)


def paired_values(value: float, differences: Floats, confidence: float = 0.95) -> Difference:
    """A difference with its interval and p-value. differences: of each resample, (num_resamples,)."""
    interval = percentile_interval(value, differences, confidence)
    defined = differences[~np.isnan(differences)]
    # Plus one, here and below: the sample itself is one of the outcomes, so a p-value is never 0.
    one_sided = (1 + min(np.sum(defined <= 0), np.sum(defined >= 0))) / (1 + len(defined))
    p_value = float("nan") if np.isnan(interval.low) else min(1.0, float(2 * one_sided))
    return Difference(interval.value, interval.low, interval.high, interval.num_undefined, p_value)
