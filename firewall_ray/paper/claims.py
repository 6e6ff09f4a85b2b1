"""What the paper claims, put to the test on the run's own queries: is a router better than another, beyond chance?

numpy only. Both sides are resampled together (a paired bootstrap), so a claim holds when the interval of the difference lies
above 0. Linear interpolation between the two models is what random routing comes to on average; as a curve it is exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firewall_ray import policy
from firewall_ray.config.run import EvaluationConfig
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores
from firewall_ray.evaluation.intervals import bootstrap_curves, paired_bootstrap
from firewall_ray.evaluation.metrics import FRACTIONS, performance_curve

LINEAR = "linear interpolation"
# With apgr_mean the same claims would hold: apgr = 1.1 * apgr_mean - 0.05 for every curve, so differences are only scaled.
METRICS = ("apgr", "pass_rate_20", "pass_rate_50", "pass_rate_80")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """router minus `against` in a metric. holds: the interval lies above 0. NaN where the metric is undefined."""

    router: str
    against: str
    metric: str
    value: float
    low: float
    high: float
    p_value: float
    holds: bool


def check_claims(
    queries: LabelledQueries, routers: list[RouterScores], against: RouterScores | None, settings: EvaluationConfig
) -> list[Claim]:
    """Each of `routers` against linear interpolation and, where it is there, against another router; on all test queries.

    Every router must have scored every query.
    """
    weak, strong = queries.pass_rate_weak, queries.pass_rate_strong
    everyone = [*routers, *([] if against is None else [against])]
    orders: dict[str, NDArray[np.intp] | None] = {
        router.name: policy.rank(router.p_weak, queries.prompts, settings.seed) for router in everyone
    }
    resampled = bootstrap_curves(weak, strong, orders, settings.num_bootstrap, settings.seed)
    # Mean pass rates at the strong fractions 0, 0.1, ..., 1: float64, (11,) each, the resampled ones (num_bootstrap, 11).
    curves = {name: performance_curve(weak, strong, order) for name, order in orders.items() if order is not None}
    claims = []
    for router in routers:
        curve, resamples = curves[router.name], resampled[router.name]
        # The line between each resample's own ends: it moves with the two models there, and only what the router adds is left.
        rivals = {LINEAR: (linear(curve), linear(resamples))}
        if against is not None and against.name != router.name:
            rivals[against.name] = (curves[against.name], resampled[against.name])
        for rival, (other, other_resamples) in rivals.items():
            for metric in METRICS:
                found = paired_bootstrap(metric, curve, other, resamples, other_resamples, settings.confidence)
                claims.append(
                    Claim(router.name, rival, metric, found.value, found.low, found.high, found.p_value, bool(found.low > 0))
                )
    return claims


def linear(curves: Floats) -> Floats:
    """The straight line between a curve's ends, for curves (..., 11).

    >>> linear(np.array([0.0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1])).tolist()
    [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.6000000000000001, 0.7000000000000001, 0.8, 0.9, 1.0]
    """
    return curves[..., :1] + FRACTIONS * (curves[..., -1:] - curves[..., :1])
