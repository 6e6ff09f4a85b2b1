import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firewall_ray.errors import LabelError
from firewall_ray.labels import compute_labels, pass_rate
from firewall_ray.schemas import LABEL_DESIGNS

Grades = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@st.composite
def grades(draw: st.DrawFn) -> Grades:
    """Verdicts of up to 5 queries with up to 12 samples."""
    num_queries, n = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    samples, greedy = hnp.arrays(bool, (num_queries, n)), hnp.arrays(bool, num_queries)
    return draw(samples), draw(samples), draw(greedy), draw(greedy)


def test_every_design_is_as_worked_by_hand() -> None:
    weak = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)  # pr 1/4, 1/2, 0, 3/4
    strong = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)  # pr 3/4, 1/2, 0, 1/4
    greedy_weak = np.array([0, 1, 0, 1], dtype=bool)
    greedy_strong = np.array([1, 1, 0, 0], dtype=bool)
    expected = {
        "hard_label": [0, 1, 1, 1],  # strong <= weak: 1<=0 no, 1<=1, 0<=0, 0<=1
        # Pairs where strong is right and weak is wrong lose: query 1 loses j=1 and 3 of 4; query 2 loses j=2 and 3;
        # query 3 none; query 4 none, since the strong hit at j=2 meets a weak hit.
        "win_rate": [0.5, 0.5, 1, 1],
        "hard_block": [0.25, 1, 1, 1],  # 3/4 > 1/4 keeps 1/4; equal rates block
        "hard_block_greedy": [0.25, 0.5, 1, 1],  # greedy strong right keeps pr_weak
        # 1 - 3/4*3/4 = 7/16;  1 - 1/2*1/2 = 3/4;  1 - 1*0 = 1;  1 - 1/4*1/4 = 15/16
        "soft_block": [0.4375, 0.75, 1, 0.9375],
        "weak_pass_rate": [0.25, 0.5, 0, 0.75],
        "strong_pass_rate": [0.25, 0.5, 1, 0.75],  # 1 - pr_strong
    }
    labels = compute_labels(weak, strong, greedy_weak, greedy_strong)
    assert tuple(labels) == LABEL_DESIGNS
    for design, values in expected.items():
        assert labels[design].dtype == np.float32
        np.testing.assert_array_equal(labels[design], np.float32(values), err_msg=design)


@given(grades())
def test_labels_are_probabilities(verdicts: Grades) -> None:
    for design, label in compute_labels(*verdicts).items():
        assert label.dtype == np.float32, design
        assert label.shape == (len(verdicts[0]),), design
        assert ((label >= 0) & (label <= 1)).all(), design


@given(grades())
def test_soft_block_is_the_mean_over_all_pairs_of_samples(verdicts: Grades) -> None:
    """The identity with Hybrid LLM: soft_block = mean over all n x n pairs of [d_strong <= d_weak]."""
    weak, strong, _, _ = verdicts
    pairs = [[s <= w for w, s in itertools.product(row_w, row_s)] for row_w, row_s in zip(weak, strong, strict=True)]
    np.testing.assert_allclose(compute_labels(*verdicts)["soft_block"], [np.mean(p) for p in pairs], atol=1e-6)


@given(grades())
def test_win_rate_counts_pairs_of_the_same_index(verdicts: Grades) -> None:
    weak, strong, _, _ = verdicts
    expected = [sum(not (s and not w) for w, s in zip(a, b, strict=True)) / len(a) for a, b in zip(weak, strong, strict=True)]
    np.testing.assert_allclose(compute_labels(*verdicts)["win_rate"], expected, atol=1e-6)


@given(grades())
def test_hard_block_is_the_weak_pass_rate_or_one(verdicts: Grades) -> None:
    labels = compute_labels(*verdicts)
    gains = verdicts[1].sum(axis=1) > verdicts[0].sum(axis=1)  # counts, not rates: no rounding in the check
    for value, weak, gain in zip(labels["hard_block"], labels["weak_pass_rate"], gains, strict=True):
        assert value == (weak if gain else 1)


@given(grades())
def test_no_label_is_below_the_weak_pass_rate_where_blocking_only_raises_it(verdicts: Grades) -> None:
    labels = compute_labels(*verdicts)
    for design in ("hard_block", "hard_block_greedy", "soft_block"):
        assert (labels[design] >= labels["weak_pass_rate"]).all(), design


@given(grades(), st.randoms(use_true_random=False))
def test_the_order_of_samples_matters_to_win_rate_alone(verdicts: Grades, random: Random) -> None:
    weak, strong, *greedy = verdicts
    order = list(range(weak.shape[1]))
    random.shuffle(order)
    before, after = compute_labels(*verdicts), compute_labels(weak[:, order], strong, *greedy)
    both = compute_labels(weak[:, order], strong[:, order], *greedy)
    for design in LABEL_DESIGNS:
        if design != "win_rate":
            np.testing.assert_array_equal(before[design], after[design], err_msg=design)
        np.testing.assert_array_equal(before[design], both[design], err_msg=design)  # pairs moved together


@given(grades())
def test_every_query_is_labelled_by_itself(verdicts: Grades) -> None:
    whole = compute_labels(*verdicts)
    for row in range(len(verdicts[0])):
        one = compute_labels(*(array[row : row + 1] for array in verdicts))
        assert {design: label[row] for design, label in whole.items()} == {design: label[0] for design, label in one.items()}


@given(grades())
def test_a_query_that_the_strong_model_never_solves_is_blocked(verdicts: Grades) -> None:
    weak, strong, greedy_weak, greedy_strong = verdicts
    labels = compute_labels(weak, np.zeros_like(strong), greedy_weak, np.zeros_like(greedy_strong))
    for design in ("hard_label", "win_rate", "hard_block", "hard_block_greedy", "soft_block", "strong_pass_rate"):
        assert (labels[design] == 1).all(), design


def test_win_rate_depends_on_the_pairing() -> None:
    one, other = np.array([[True, False]]), np.array([[False, True]])
    no = np.array([False])
    assert compute_labels(one, one, no, no)["win_rate"] == 1
    assert compute_labels(one, other, no, no)["win_rate"] == 0.5


def test_zero_queries_give_zero_labels() -> None:
    none = np.empty((0, 32), dtype=bool)
    assert all(len(label) == 0 for label in compute_labels(none, none, none[:, 0], none[:, 0]).values())


def test_zero_samples_are_refused_and_not_called_always_wrong() -> None:
    with pytest.raises(LabelError, match="no samples"):
        pass_rate(np.empty((3, 0), dtype=bool))


@pytest.mark.parametrize(
    ("weak", "strong", "greedy_weak", "greedy_strong", "named"),
    [
        (np.ones((2, 4), bool), np.ones((2, 8), bool), np.ones(2, bool), np.ones(2, bool), r"\(2, 4\).*\(2, 8\)"),
        (np.ones((2, 4), bool), np.ones((3, 4), bool), np.ones(2, bool), np.ones(2, bool), r"\(2, 4\).*\(3, 4\)"),
        (np.ones((2, 4), bool), np.ones((2, 4), bool), np.ones(3, bool), np.ones(3, bool), "2 queries.* 3"),
        (np.ones((2, 4), bool), np.ones((2, 4), bool), np.ones(2, bool), np.ones(3, bool), "greedy_strong"),
        (np.ones((2, 4), int), np.ones((2, 4), bool), np.ones(2, bool), np.ones(2, bool), "correct_weak must be a bool"),
        (np.ones((2, 4), bool), np.full((2, 4), np.nan), np.ones(2, bool), np.ones(2, bool), "correct_strong must be a bool"),
        (np.ones((2, 4), bool), np.ones((2, 4), bool), np.ones(2), np.ones(2, bool), "greedy_weak must be a bool"),
        (np.ones(4, bool), np.ones(4, bool), np.ones(2, bool), np.ones(2, bool), "2 dimension"),
        (np.ones((2, 0), bool), np.ones((2, 0), bool), np.ones(2, bool), np.ones(2, bool), "no samples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    weak: np.ndarray, strong: np.ndarray, greedy_weak: np.ndarray, greedy_strong: np.ndarray, named: str
) -> None:
    with pytest.raises(LabelError, match=named):
        compute_labels(weak, strong, greedy_weak, greedy_strong)
