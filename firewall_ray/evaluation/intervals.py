"""Bootstrap confidence intervals over queries (Efron's percentile method), for one router and for the difference of two.

A resample draws as many queries as there are, with replacement. It enters as *counts*, how often each query was drawn, so
that no ranking is sorted again: the copies of a query stand together in the order that is already known. A thousand
resamples of 20,000 queries take seconds, in the memory of one resample and the curves.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray.errors import EvaluationError
from firewall_ray.evaluation.metrics import FRACTIONS, METRICS, UndefinedMetricWarning, performance_curve

Floats = NDArray[np.float64]


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
    num_queries = len(weak)
    draws, shuffles = (np.random.default_rng(child) for child in np.random.SeedSequence([seed < 0, abs(seed)]).spawn(2))
    curves = {name: np.empty((num_resamples, len(FRACTIONS))) for name in orders}
    for b in range(num_resamples):
        counts = np.bincount(draws.integers(num_queries, size=num_queries), minlength=num_queries)
        for name, order in orders.items():
            ranking = shuffles.permutation(num_queries) if order is None else order
            curves[name][b] = performance_curve(weak, strong, ranking, counts=counts)
    return curves


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
    interval = percentile_interval(value, differences, confidence)
    defined = differences[~np.isnan(differences)]
    # Plus one, here and below: the sample itself is one of the outcomes, so a p-value is never 0.
    one_sided = (1 + min(np.sum(defined <= 0), np.sum(defined >= 0))) / (1 + len(defined))
    p_value = float("nan") if np.isnan(interval.low) else min(1.0, float(2 * one_sided))
    return Difference(interval.value, interval.low, interval.high, interval.num_undefined, p_value)
