"""The curves of the rows of the paper's tables, one for each data set, with the resamples that claims and intervals are made of.

Labels and scores in, in memory; runs in the driver. All rows of a data set are resampled together, those of the second pair too: it
has the same test queries, which the bootstrap draws by their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firewall_ray import policy
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores
from firewall_ray.evaluation.intervals import bootstrap_curves
from firewall_ray.evaluation.metrics import FRACTIONS, performance_curve
from firewall_ray.paper.rows import RANDOM, ROWS

Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """Mean pass rate at the strong fractions 0, 0.1, ..., 1: (11,), and of each resample: (num_bootstrap, 11). router: whose."""

    router: str
    curve: Floats
    resamples: Floats


@dataclass(frozen=True)
class Setting:
    """Labels, and the routers that are measured on them, by name."""

    queries: LabelledQueries
    routers: Mapping[str, RouterScores]


Measured = Mapping[tuple[str, str, str], Curve]  # by table, method and data set of the paper


def measure(settings: Mapping[str, Setting], config: RunConfig) -> Measured:
    """settings: by `rows.FIRST`, SECOND and CAUSAL; what is not there leaves its rows out."""
    measured: dict[tuple[str, str, str], Curve] = {}
    for dataset, task in config.paper.datasets.items():
        curves = {name: _curves(setting, task, config) for name, setting in settings.items()}
        for table, rows in ROWS.items():
            for method, row in rows.items():
                of_setting = curves.get(row.setting, {})
                found = [of_setting[name] for name in row.routers if name in of_setting]
                if found:
                    measured[table, method, dataset] = found[0]
    return measured


def _curves(setting: Setting, task: str, config: RunConfig) -> dict[str, Curve]:
    """By router, of those that have scored the task."""
    queries, evaluation = setting.queries, config.evaluation
    rows = np.flatnonzero(queries.tasks == task)
    if not len(rows):
        return {}
    # float64, (num_queries of the task,), in [0, 1].
    weak, strong = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
    prompts = [queries.prompts[row] for row in rows]
    wanted = {name for of_table in ROWS.values() for row in of_table.values() for name in row.routers}
    orders: dict[str, NDArray[np.intp] | None] = {
        name: policy.rank(router.p_weak[rows], prompts, evaluation.seed)
        for name, router in setting.routers.items()
        if name in wanted and task in router.tasks
    }
    resampled = bootstrap_curves(weak, strong, {**orders, RANDOM: None}, evaluation.num_bootstrap, evaluation.seed)
    found = {
        name: Curve(name, performance_curve(weak, strong, order), resampled[name])
        for name, order in orders.items()
        if order is not None
    }
    ends = resampled[RANDOM]
    # The line between each resample's own ends: it moves with the two models there, and only what a router adds is left.
    line = Curve(RANDOM, np.linspace(weak.mean(), strong.mean(), len(FRACTIONS)), linear(ends))
    return {**found, RANDOM: line}


def linear(curves: Floats) -> Floats:
    """The straight line between a curve's ends, for curves (..., 11).

    >>> linear(np.array([0.0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1])).tolist()
    [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.6000000000000001, 0.7000000000000001, 0.8, 0.9, 1.0]
    """
    return curves[..., :1] + FRACTIONS * (curves[..., -1:] - curves[..., :1])
