"""The numbers of the paper's figures: queries, or responses, in the order of a value and cut into bins of equal count. numpy only.

The report's bins (`evaluation/bins.py`) have equal width instead: there the place on the axis is p_weak itself, to be compared with
the label. Here it is the place in the ranking, which is all that routing sees of a score, so no bin is empty or all but empty.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firewall_ray import policy
from firewall_ray.config.run import EvaluationConfig
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores

Floats = NDArray[np.float64]
Bin = dict[str, Any]


def equal_count(order: NDArray[np.intp], num_bins: int) -> list[NDArray[np.intp]]:
    """The order cut into `num_bins` neighbouring parts, larger ones by one row first; fewer parts where there are fewer rows.

    >>> equal_count(np.array([4, 0, 2, 1, 3]), num_bins=2)
    [array([4, 0, 2]), array([1, 3])]
    """
    return np.array_split(order, min(num_bins, len(order)))


def bin_queries(
    p_weak: Floats, pass_rate_weak: Floats, pass_rate_strong: Floats, prompts: Sequence[str], num_bins: int, seed: int = 0
) -> list[Bin]:
    """Queries in the order in which they go to the strong model (`policy.rank`: ties by a hash), in bins of equal count.

    All inputs (num_queries,), at least one query. Each bin: `low` and `high`, its least and largest p_weak, `num_queries`, and the
    means `pass_rate_weak`, `pass_rate_strong` and `gain`. The mean of all gains is the gap between the models.
    """
    gain = pass_rate_strong - pass_rate_weak
    return [
        {
            "low": float(p_weak[rows[0]]),
            "high": float(p_weak[rows[-1]]),
            "num_queries": len(rows),
            "pass_rate_weak": float(pass_rate_weak[rows].mean()),
            "pass_rate_strong": float(pass_rate_strong[rows].mean()),
            "gain": float(gain[rows].mean()),
        }
        for rows in equal_count(policy.rank(p_weak, prompts, seed), num_bins)
    ]


def bin_router(queries: LabelledQueries, router: RouterScores, settings: EvaluationConfig) -> dict[str, list[Bin]]:
    """By task that the router has scored: its bins."""
    found = {}
    for task in sorted(router.tasks):
        rows = np.flatnonzero(queries.tasks == task)
        rates = queries.pass_rate_weak[rows], queries.pass_rate_strong[rows]
        prompts = [queries.prompts[row] for row in rows]
        found[task] = bin_queries(router.p_weak[rows], *rates, prompts, settings.num_bins, settings.seed)
    return found


def bin_responses(quality: Floats, correct: NDArray[np.bool_], keys: Sequence[str], num_bins: int, seed: int = 0) -> list[Bin]:
    """Responses in the order of their BARTScore, lowest first, in bins of equal count.

    All inputs (num_responses,), at least one. keys: what breaks ties, a text that no other response has: a model that says the same
    thing often has many. Each bin: `low`, `high`, its least and largest BARTScore, `num_responses`, and the share `accuracy`.
    """
    return [
        {
            "low": float(quality[rows[0]]),
            "high": float(quality[rows[-1]]),
            "num_responses": len(rows),
            "accuracy": float(correct[rows].mean()),
        }
        for rows in equal_count(policy.rank(quality, keys, seed), num_bins)
    ]
