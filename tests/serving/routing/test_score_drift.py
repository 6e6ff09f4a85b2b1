import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import PolicyError
from firewall_ray.policy import QuantileTable
from serve_app.metrics import NUM_SCORE_BINS, SCORE_BINS
from serve_app.routing.drift import ScoreDrift, calibration_counts, population_stability_index

COUNTS = st.lists(st.integers(0, 1_000), min_size=NUM_SCORE_BINS, max_size=NUM_SCORE_BINS).filter(any)


def test_the_index_is_that_of_a_sum_by_hand() -> None:
    # With half a score a bin: e = 199.5, 199.5 and a = 99.5, 299.5 of 399, so shares 0.5, 0.5 and 0.249373, 0.750627.
    # -0.250627 * ln 0.498747 + 0.250627 * ln 1.501253 = 0.174350 + 0.101830
    assert population_stability_index([199, 199], [99, 299]) == pytest.approx(0.276180, abs=2e-6)


def test_an_empty_bin_gives_a_finite_index() -> None:
    # e = 10.5/11, .5/11; a the other way round: 2 * (10/11) * ln 21
    assert population_stability_index([10, 0], [0, 10]) == pytest.approx(20 / 11 * math.log(21))


@given(COUNTS, COUNTS)
def test_the_index_is_never_negative_and_the_same_both_ways(one: list[int], other: list[int]) -> None:
    index = population_stability_index(one, other)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(other, one))
    assert population_stability_index(one, one) == 0


def test_samples_of_one_law_give_the_index_that_theory_expects() -> None:
    # (1/n + 1/m) times a chi-square of B - 1: mean 19 * (1/1000 + 1/400) = 0.0665, standard deviation sqrt(38) * 0.0035 = 0.0216.
    rng = np.random.default_rng(0)
    pairs = [(rng.multinomial(1_000, [0.05] * 20), rng.multinomial(400, [0.05] * 20)) for _ in range(2_000)]
    indices = np.array([population_stability_index(m, n) for n, m in pairs])
    assert indices.mean() == pytest.approx(0.0665, rel=0.05)
    assert indices.std() == pytest.approx(0.0216, rel=0.15)
    assert (indices > 0.25).sum() == 0


@pytest.mark.parametrize(
    ("expected", "actual", "why"),
    [
        ([1, 2], [1, 2, 3], "shapes"),
        ([[1, 2]], [[1, 2]], "shapes"),
        ([0, 0], [1, 2], "expected"),
        ([1, 2], [-1, 2], "actual"),
        ([1, 2], [math.nan, 2], "actual"),
    ],
)
def test_what_is_no_pair_of_histograms_is_refused(expected: list[float], actual: list[float], why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        population_stability_index(expected, actual)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300))
def test_a_table_that_keeps_every_score_gives_the_histogram_of_the_sample(hundredths: list[int]) -> None:
    scores = [i / 100 for i in hundredths]
    bins = np.searchsorted(SCORE_BINS, scores, side="left")  # an upper end belongs to the bin below it
    counts = calibration_counts(QuantileTable.from_scores(scores))
    assert counts.tolist() == np.bincount(bins, minlength=NUM_SCORE_BINS).tolist()


def test_a_table_that_leaves_scores_out_is_interpolated() -> None:
    scores = np.random.default_rng(0).beta(2, 5, 20_000)
    counts = calibration_counts(QuantileTable.from_scores(scores, num_quantiles=100))
    true = np.histogram(scores, np.linspace(0, 1, NUM_SCORE_BINS + 1))[0]
    assert counts.sum() == 20_000
    assert np.abs(counts - true).max() <= 20_000 / 100


def test_scores_beyond_0_and_1_count_in_the_outer_bins() -> None:
    counts = calibration_counts(QuantileTable.from_scores([-3.0, 0.5, 7.0, 8.0]))
    assert (counts[0], counts[9], counts[19]) == (1, 1, 2)
    drift = ScoreDrift(QuantileTable.from_scores([-3.0, 7.0]), window=2, recompute_every=1)
    assert drift.add(-1.0) is None
    assert drift.add(2.0) == 0


def test_the_index_comes_when_the_window_is_full_and_then_every_so_often() -> None:
    drift = ScoreDrift(QuantileTable.from_scores([0.1, 0.9]), window=10, recompute_every=4)
    came = [i for i in range(1, 25) if drift.add(0.1) is not None]
    assert came == [12, 16, 20, 24]


def test_the_window_forgets_what_was_before_it() -> None:
    table = QuantileTable.from_scores([0.1] * 5 + [0.9] * 5)
    drift = ScoreDrift(table, window=10, recompute_every=10)
    assert [drift.add(0.9) for _ in range(10)][-1] == population_stability_index([5, 5, *[0] * 18], [0, 10, *[0] * 18])
    assert [drift.add(score) for score in [0.1, 0.9] * 5][-1] == pytest.approx(0)


def test_traffic_like_the_calibration_stays_below_a_quarter_and_shifted_traffic_does_not() -> None:
    rng = np.random.default_rng(0)
    drift = ScoreDrift(QuantileTable.from_scores(rng.beta(3, 2, 400)))
    same = [drift.add(score) for score in rng.beta(3, 2, 20_000).tolist()]
    shifted = [drift.add(score) for score in rng.beta(2, 3, 1_000).tolist()]
    assert max(index for index in same if index is not None) < 0.25
    assert shifted[-1] is not None
    assert shifted[-1] > 0.25
