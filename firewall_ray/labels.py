"""Grade -> Label: the paper's equations, on arrays of many queries at once. numpy and nothing else.

A label says how well the weak model serves a query: 1 means send it to the weak model, 0 means the strong one is needed.

Symbols: n samples a query; pr, the pass rate over them; d, 0 or 1, whether the greedy answer is right, and d^j, whether
sample j is. Arrays of samples are bool, (num_queries, n); of greedy answers bool, (num_queries,); of rates and labels
float32, (num_queries,), in [0, 1].
"""

import numpy as np
from numpy.typing import NDArray

from firewall_ray.errors import LabelError

Bools = NDArray[np.bool_]
Rates = NDArray[np.float32]


def pass_rate(correct: Bools) -> Rates:
    """Share of a query's samples that are correct, c / n (paper Eq. 3).

    Raises LabelError when n is 0: an ungraded query has no rate, and 0.0 would read as "always wrong".

    >>> pass_rate(np.array([[True, False, False, True]]))
    array([0.5], dtype=float32)
    """
    _check("correct", correct, ndim=2)
    # numpy takes the mean of bools in float64; float32, the contract's, is rounded to once.
    return correct.mean(axis=1).astype(np.float32)


def hard_label(greedy_weak: Bools, greedy_strong: Bools) -> Rates:
    """1 if d_strong <= d_weak, else 0 (paper Sec. 3.1.1): the strong model's one answer is no better.

    >>> hard_label(np.array([True, True, False, False]), np.array([True, False, True, False]))
    array([1., 1., 0., 1.], dtype=float32)
    """
    _check_pair("greedy", greedy_weak, greedy_strong, ndim=1)
    # On bools: False where the strong model alone is right, True in the three other cases.
    return (greedy_strong <= greedy_weak).astype(np.float32)


def win_rate(correct_weak: Bools, correct_strong: Bools) -> Rates:
    """Mean over j of [d_strong^j <= d_weak^j] (paper Sec. 3.1.2); samples are paired by their index j.

    >>> win_rate(np.array([[True, False, False, True]]), np.array([[True, True, False, False]]))
    array([0.75], dtype=float32)
    """
    _check_pair("correct", correct_weak, correct_strong, ndim=2)
    return (correct_strong <= correct_weak).mean(axis=1).astype(np.float32)


def hard_block(pass_rate_weak: Rates, pass_rate_strong: Rates) -> Rates:
    """pr_weak if pr_strong > pr_weak, else 1 (paper Eq. 4, 5).

    Where the strong model gains nothing the query is blocked from it: label 1, however low pr_weak is.

    >>> hard_block(np.float32([0.25, 0.5, 0]), np.float32([1, 0.5, 0]))
    array([0.25, 1.  , 1.  ], dtype=float32)
    """
    # Equal rates are exactly equal here: both are c / n of the same n, rounded alike. Eq. 4 counts them as unsolvable.
    return np.where(pass_rate_strong > pass_rate_weak, pass_rate_weak, np.float32(1))


def hard_block_greedy(pass_rate_weak: Rates, greedy_strong: Bools) -> Rates:
    """pr_weak if d_strong = 1, else 1 (paper Eq. 5, 6, "w/o strong-model sampling").

    >>> hard_block_greedy(np.float32([0.25, 0.25]), np.array([True, False]))
    array([0.25, 1.  ], dtype=float32)
    """
    # The strong model's n samples are not read: saving them is what this design is for (Sec. 4.3.2).
    return np.where(greedy_strong, pass_rate_weak, np.float32(1))


def soft_block(pass_rate_weak: Rates, pass_rate_strong: Rates) -> Rates:
    """1 - (1 - pr_weak) * pr_strong (paper Eq. 7).

    One minus the chance that an independent pair of samples has weak wrong and strong right: the mean over all n * n pairs
    of [d_strong <= d_weak], which is the label of Hybrid LLM's probabilistic router.

    >>> soft_block(np.float32([0.25, 0]), np.float32([0.5, 0]))
    array([0.625, 1.   ], dtype=float32)
    """
    # In float64, so that the label is rounded once.
    return (1 - (1 - pass_rate_weak.astype(np.float64)) * pass_rate_strong).astype(np.float32)


def compute_labels(correct_weak: Bools, correct_strong: Bools, greedy_weak: Bools, greedy_strong: Bools) -> dict[str, Rates]:
    """Every label design (keys: `schemas.LABEL_DESIGNS`) of every query.

    Raises LabelError when n is 0, when shapes do not fit each other, or when an array is not bool.

    >>> one, zero = np.array([[True]]), np.array([[False]])
    >>> {design: float(label[0]) for design, label in compute_labels(zero, one, zero[0], one[0]).items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'hard_label': 0.0, 'win_rate': 0.0, 'hard_block': 0.0, 'hard_block_greedy': 0.0, 'soft_block': 0.0, 'weak_pass_rate': 0.0,
     'strong_pass_rate': 0.0}
    """
    _check_pair("correct", correct_weak, correct_strong, ndim=2)
    _check_pair("greedy", greedy_weak, greedy_strong, ndim=1)
    if len(correct_weak) != len(greedy_weak):
        raise LabelError(f"There are samples of {len(correct_weak):,} queries and greedy answers of {len(greedy_weak):,}.")
    # (num_queries,) each. Rates do not depend on the order of samples; win_rate alone does.
    weak, strong = pass_rate(correct_weak), pass_rate(correct_strong)
    return {
        "hard_label": hard_label(greedy_weak, greedy_strong),
        "win_rate": win_rate(correct_weak, correct_strong),
        "hard_block": hard_block(weak, strong),
        "hard_block_greedy": hard_block_greedy(weak, greedy_strong),
        "soft_block": soft_block(weak, strong),
        "weak_pass_rate": weak,
        "strong_pass_rate": 1 - strong,  # Inverted, so that larger still means weak (Sec. 4.3.2).
    }


def _check_pair(name: str, weak: Bools, strong: Bools, ndim: int) -> None:
    _check(f"{name}_weak", weak, ndim)
    _check(f"{name}_strong", strong, ndim)
    if weak.shape != strong.shape:
        raise LabelError(
            f"{name}_weak has shape {weak.shape} and {name}_strong {strong.shape}. Both models need the same queries, "
            "sampled the same number of times."
        )


def _check(name: str, array: Bools, ndim: int) -> None:
    if array.dtype != np.bool_:
        raise LabelError(f"{name} must be a bool array, it is {array.dtype}. A null or a 0.5 is no verdict.")
    if array.ndim != ndim:
        raise LabelError(f"{name} must have {ndim} dimension(s), it has shape {array.shape}.")
    if ndim == 2 and array.shape[1] == 0:
        raise LabelError(f"{name} has no samples (shape {array.shape}): without any there is no pass rate. Sample and grade again.")
