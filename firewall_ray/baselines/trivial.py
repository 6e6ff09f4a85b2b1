"""The four trivial routers: random, oracle, always weak, always strong.

Rows in: labels (query_id, pass_rate_weak, pass_rate_strong). Rows out: SCORES. Runs anywhere. The report works them out
from the labels by itself; the rows are for what reads scores/ only. The two constant routers rank nothing: the report
shows their pass rate, and no APGR.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from firewall_ray.policy import tie_hash
from firewall_ray.schemas import SCORES


def oracle_p_weak(pass_rate_weak: ArrayLike, pass_rate_strong: ArrayLike) -> NDArray[np.float64]:
    """(1 - gain) / 2 with gain = pass_rate_strong - pass_rate_weak, in [0, 1]: no ranking has a higher curve anywhere.

    >>> oracle_p_weak([0.0, 1.0, 0.5], [1.0, 0.0, 0.5])
    array([0. , 1. , 0.5])
    """
    gain = np.asarray(pass_rate_strong, dtype=np.float64) - np.asarray(pass_rate_weak, dtype=np.float64)
    return (1 - gain) / 2


def random_scores(labels: pa.Table, seed: int = 0) -> pa.Table:
    """A uniform score, drawn from query id and seed: the rows' order does not matter."""
    return _scores(labels, np.array([tie_hash(query_id, seed) for query_id in labels["query_id"].to_pylist()]))


def oracle_scores(labels: pa.Table) -> pa.Table:
    """Looks at the labels: an upper bound for routers, not one of them."""
    return _scores(labels, oracle_p_weak(labels["pass_rate_weak"].to_numpy(), labels["pass_rate_strong"].to_numpy()))


def always_weak_scores(labels: pa.Table) -> pa.Table:
    """p_weak 1 for every query."""
    return _scores(labels, np.ones(len(labels)))


def always_strong_scores(labels: pa.Table) -> pa.Table:
    """p_weak 0 for every query."""
    return _scores(labels, np.zeros(len(labels)))


TRIVIAL_BASELINES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "random": random_scores,
    "oracle": oracle_scores,
    "always_weak": always_weak_scores,
    "always_strong": always_strong_scores,
}


def _scores(labels: pa.Table, p_weak: NDArray[np.float64]) -> pa.Table:
    return pa.table({"query_id": labels["query_id"], "p_weak": p_weak.astype(np.float32)}, schema=SCORES)
