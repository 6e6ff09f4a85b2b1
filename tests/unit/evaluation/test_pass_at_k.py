from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import EvaluationError
from firewall_ray.evaluation.pass_at_k import mean_pass_at_k, pass_at_k


@given(st.data())
def test_it_is_the_share_of_all_draws_of_k_that_hold_a_right_one(data: st.DataObject) -> None:
    """The definition itself, counted: every set of k of the n samples, drawn without replacement."""
    n = data.draw(st.integers(1, 9))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.integers(1, 500), st.data())
def test_one_try_is_the_pass_rate_and_more_tries_never_hurt(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    values = [pass_at_k(n, c, k) for k in range(1, n + 1, max(1, n // 7))]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_the_mean_is_over_problems_not_over_samples() -> None:
    assert mean_pass_at_k([1, 3], [1, 0], 1) == 0.5  # 1 of 4 samples is right, but in 1 of 2 problems


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "named"),
    [
        ([3], [4], 1, "num_correct is 4, but there are 3 samples"),
        ([3], [-1], 1, "num_correct is -1"),
        ([3], [1], 0, "k is 0"),
        ([3, 1], [1, 1], 2, "pass@2 needs 2 samples of every problem, there is one with 1"),
        ([], [], 1, "pass@1 of no problems has no value"),
        ([1, 2], [1], 1, "sample counts of 2 problems and correct ones of 1"),
    ],
)
def test_counts_without_an_estimate_are_refused(num_samples: list[int], num_correct: list[int], k: int, named: str) -> None:
    with pytest.raises(EvaluationError, match=named):
        mean_pass_at_k(num_samples, num_correct, k)
