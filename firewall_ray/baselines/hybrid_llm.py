"""Hybrid LLM's labels (Ding et al. 2024, "Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing", ICLR, Sec. 3).

H(x) = q(S(x)) - q(L(x)): the quality of a response of the small (here: weak) model less that of one of the large (strong) model.
Three labels, each for a router trained by binary cross-entropy, as ours are:

- deterministic, Sec. 3.1: 1 if H >= 0, of one sampled response each.
- probabilistic, Sec. 3.2: Pr[H >= 0] over ten sampled responses of each, every pair of them.
- transformed, Sec. 3.3: Pr[H >= -t], with the t that spreads the labels furthest (Eq. 3). A weak model that is hardly ever as
  good leaves the probabilistic label near 0 everywhere, which teaches a router little.

With correctness (0 or 1) as quality the probabilistic label is `soft_block`. Qualities in, labels out; numpy and nothing else.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firewall_ray.errors import LabelError

Floats = NDArray[np.float64]
Qualities = NDArray[np.float32]

NUM_THRESHOLDS = 200  # values of t that are tried: a grid, as in the paper, through the quantiles of the shortfalls


def deterministic_label(weak: Sequence[Qualities], strong: Sequence[Qualities]) -> NDArray[np.float32]:
    """1 if q(S(x)) >= q(L(x)), else 0 (Sec. 3.1), of the first response of each: float32, (num_queries,).

    weak, strong: as for `quality_gaps`.

    >>> deterministic_label([np.float32([-1, -9]), np.float32([-2, 0])], [np.float32([-1, 0]), np.float32([-1, -9])])
    array([1., 0.], dtype=float32)
    """
    pairs = zip(weak, strong, strict=True)
    return np.array([of_weak[0] >= of_strong[0] for of_weak, of_strong in pairs], dtype=np.float32)


def quality_gaps(weak: Sequence[Qualities], strong: Sequence[Qualities]) -> list[Qualities]:
    """H of every pair of responses of each query, ascending: float32, (n_weak * n_strong,) each.

    weak, strong: for each query the qualities of its samples, (n,). Raises LabelError for a query without samples.

    >>> quality_gaps([np.float32([0, 1])], [np.float32([1, 3])])
    [array([-3., -2., -1.,  0.], dtype=float32)]
    """
    gaps = []
    for row, (of_weak, of_strong) in enumerate(zip(weak, strong, strict=True)):
        if not len(of_weak) or not len(of_strong):
            raise LabelError(f"Query {row} (counted from 0) has {len(of_weak)} weak and {len(of_strong)} strong qualities.")
        gaps.append(np.sort(np.subtract.outer(of_weak, of_strong), axis=None))
    return gaps


def probability_within(gaps: Sequence[Qualities], thresholds: Sequence[float] | Qualities) -> Floats:
    """Pr[H >= -t] for every query and t (Sec. 3.2 with t = 0, Sec. 3.3): float64, (num_queries, num_thresholds), in [0, 1].

    >>> probability_within([np.float32([-3, -2, -1, 0])], [0, 1, 2.5])
    array([[0.25, 0.5 , 0.75]])
    """
    # In the type of the gaps, so that -t equals the very gap that t came from; side="left" counts that gap in.
    lowest = -np.asarray(thresholds, dtype=np.float32)
    return np.array([(len(each) - np.searchsorted(each, lowest, side="left")) / len(each) for each in gaps])


def mean_difference(labels: Floats) -> Floats:
    """(1 / N^2) * sum over i, i' of |y_i - y_i'| down each column, the objective of Eq. 3. labels: (N, num_thresholds).

    Sorted, y_(k) is larger than k - 1 others and smaller than N - k, which makes the double sum a single one.

    >>> mean_difference(np.array([[0.0], [1.0], [1.0]]))  # 4 of the 9 ordered pairs differ, by 1
    array([0.44444444])
    """
    count = len(labels)
    # int64, (N,): -(N - 1), -(N - 3), ..., N - 1. All N * N differences at once would be 80 GB a threshold at 100,000 queries.
    places = 2 * np.arange(1, count + 1) - count - 1
    return 2 * places @ np.sort(labels, axis=0) / count**2


def best_threshold(gaps: Sequence[Qualities], num_thresholds: int = NUM_THRESHOLDS) -> float:
    """t* = argmax over t of `mean_difference` of the transformed labels (Eq. 3); the smallest such t, at least 0.

    Tried are 0 and quantiles of the shortfalls, -H where it is negative. gaps: as from `quality_gaps`, of the train split.
    """
    shortfalls = -np.concatenate([each[each < 0] for each in gaps])
    if not len(shortfalls):
        return 0.0
    # Values that occur, not between two: labels only change there.
    tried = np.quantile(shortfalls, np.linspace(0, 1, num_thresholds), method="inverted_cdf")
    tried = np.unique(np.append(np.float32(0), tried))
    # tried ascends, and argmax takes the first of equals: the smallest t.
    return float(tried[np.argmax(mean_difference(probability_within(gaps, tried)))])
