"""pass@k: the chance that at least one of k samples is right (Chen et al. 2021, Eq. 1). numpy only."""

from collections.abc import Sequence

import numpy as np

from firewall_ray.errors import EvaluationError


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate from n samples, c of them right: 1 - C(n - c, k) / C(n, k), in [0, 1]; for k = 1 that is c / n.

    It is the chance of a right one among k of the n drawn without replacement; 1 - (1 - c / n)^k would be too low. With n < k
    it is 1 whatever c is, as in openai/human-eval's estimate_pass_at_k: `mean_pass_at_k` refuses that. Raises EvaluationError
    where c is not in 0 .. n, or k is below 1.

    >>> pass_at_k(4, 1, 2)  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    0.5
    """
    if not 0 <= num_correct <= num_samples:
        raise EvaluationError(f"num_correct is {num_correct}, but there are {num_samples} samples.")
    if k < 1:
        raise EvaluationError(f"k is {k}; pass@k needs at least one sample.")
    # Fewer wrong ones than are drawn: a right one is among them for certain. The factors below would begin at 0 or less.
    if num_samples - num_correct < k:
        return 1.0
    # As a product, term by term the official sum: the binomials themselves overflow. Without a right one it is empty, and 1.
    return float(1 - np.prod(1 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))


def mean_pass_at_k(num_samples: Sequence[int], num_correct: Sequence[int], k: int) -> float:
    """The benchmark's score, in [0, 1]: the mean over problems. num_samples, num_correct: one of each a problem.

    Raises EvaluationError without problems, where lengths differ, and where a problem has fewer than k samples.
    """
    if len(num_samples) != len(num_correct):
        raise EvaluationError(f"There are sample counts of {len(num_samples)} problems and correct ones of {len(num_correct)}.")
    if not num_samples:
        raise EvaluationError(f"pass@{k} of no problems has no value.")
    if min(num_samples) < k:
        raise EvaluationError(
            f"pass@{k} needs {k} samples of every problem, there is one with {min(num_samples)}. Sample more, or lower k."
        )
    return float(np.mean([pass_at_k(n, c, k) for n, c in zip(num_samples, num_correct, strict=True)]))
