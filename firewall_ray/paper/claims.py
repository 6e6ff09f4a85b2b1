"""The paper's claims, put to the test on the run's own queries, and on the paper's own rows.

numpy only. Both sides are resampled together (a paired bootstrap); where a side is the best of several methods, the best is taken
anew in each resample, so that having chosen is part of the interval.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firewall_ray.config.run import EvaluationConfig
from firewall_ray.evaluation.intervals import Difference, paired_values
from firewall_ray.evaluation.metrics import METRICS, UndefinedMetricWarning
from firewall_ray.paper.layout import METRIC_OF
from firewall_ray.paper.measured import Measured
from firewall_ray.paper.published import published
from firewall_ray.paper.statements import STATEMENTS, Side, Statement

Floats = NDArray[np.float64]
HELD, NOT_HELD, UNDECIDED, NOT_MEASURED = "held", "not held", "can't say", "not measured"


@dataclass(frozen=True)
class Claim:
    """A statement on one data set. value: the best of one side minus the best of the other in `metric`, a rate; low, high: its
    interval. All NaN where a method was not measured, which `verdict` says.

    verdict: held where the interval lies above 0, not held where it lies below, else can't say. published: the same difference in
    the paper's own rows, and whether they bear the statement out.
    """

    statement: str
    section: str
    dataset: str
    metric: str
    value: float
    low: float
    high: float
    p_value: float
    verdict: str
    published: float
    held_in_paper: bool


def check_claims(measured: Measured, settings: EvaluationConfig) -> list[Claim]:
    """Every statement on every data set that it speaks of, in the paper's order."""
    return [_claim(statement, dataset, measured, settings) for statement in STATEMENTS for dataset in statement.datasets]


def _claim(statement: Statement, dataset: str, measured: Measured, settings: EvaluationConfig) -> Claim:
    ahead = _values(statement.ahead, dataset, statement.metric, measured)
    behind = _values(statement.behind, dataset, statement.metric, measured)
    found, verdict = Difference(float("nan"), float("nan"), float("nan")), NOT_MEASURED
    if ahead is not None and behind is not None:
        found = paired_values(ahead[0] - behind[0], ahead[1] - behind[1], settings.confidence)
        # Undefined on these queries, where the strong model is not better.
        if not np.isnan(found.low):
            verdict = HELD if found.low > 0 else NOT_HELD if found.high < 0 else UNDECIDED
    in_paper = published_difference(statement, dataset)
    return Claim(
        statement.text,
        statement.section,
        dataset,
        METRIC_OF[statement.metric],
        *(found.value, found.low, found.high, found.p_value),
        verdict,
        in_paper,
        in_paper > 0,
    )


def _values(side: Side, dataset: str, column: str, measured: Measured) -> tuple[float, Floats] | None:
    """The best of a side: a number, and one of each resample, (num_bootstrap,). None where one of its methods was not measured."""
    curves = [measured.get((table, method, dataset)) for table, method in side]
    metric = METRICS[METRIC_OF[column]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        # Of fewer methods than the paper compares, the best would be another claim.
        values = [(float(metric(curve.curve)), metric(curve.resamples)) for curve in curves if curve is not None]
    if len(values) < len(side):
        return None
    return max(value for value, _ in values), np.max([resampled for _, resampled in values], axis=0)


def published_difference(statement: Statement, dataset: str) -> float:
    """In the paper's own rows, as a rate."""

    def best(side: Side) -> float:
        cells = [published().cell(table, method, dataset, statement.metric) for table, method in side]
        return max(cell for cell in cells if cell is not None)

    # Rounded to the printed digits: 12.27 less 12.27 is no gain.
    return round(best(statement.ahead) - best(statement.behind), 2) / 100


def denied_in_print() -> Iterator[str]:
    """Statements that the paper's own rows do not bear out."""
    for statement in STATEMENTS:
        for dataset in statement.datasets:
            difference = published_difference(statement, dataset)
            if difference <= 0:
                yield f'{statement.section}, {dataset}: "{statement.text}" is {100 * difference:+.2f} points in its own rows.'
