"""Hybrid LLM's labels against its own definitions, written out as loops, and against soft_block."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firewall_ray.baselines.hybrid_llm import best_threshold, mean_difference, probability_within, quality_gaps
from firewall_ray.baselines.hybrid_llm_responses import reference_texts
from firewall_ray.errors import ConfigError, LabelError
from firewall_ray.labels import pass_rate, soft_block

RNG = np.random.default_rng(0)
CORRECT = RNG.random((40, 8)) < RNG.random((40, 1)), RNG.random((40, 8)) < 0.7


def by_hand(weak: np.ndarray, strong: np.ndarray, t: float) -> float:
    """Pr[q(S) - q(L) >= -t] over all pairs, counted one by one."""
    return float(np.mean([w - s >= -t for w, s in itertools.product(weak, strong)]))


def test_with_correctness_as_quality_the_probabilistic_label_is_soft_block() -> None:
    weak, strong = CORRECT
    gaps = quality_gaps([*weak.astype(np.float32)], [*strong.astype(np.float32)])
    label = probability_within(gaps, [0])[:, 0]
    np.testing.assert_allclose(label, 1 - (1 - weak.mean(axis=1)) * strong.mean(axis=1), atol=1e-12, rtol=0)
    np.testing.assert_allclose(label, soft_block(pass_rate(weak), pass_rate(strong)), atol=1e-7)


def test_every_pair_of_responses_counts_also_where_the_models_were_sampled_differently_often() -> None:
    weak, strong = [np.float32([-1, -3]), np.float32([-2])], [np.float32([-2, -2, -0.5]), np.float32([-2])]
    labels = probability_within(quality_gaps(weak, strong), [0, 1, 2.5])
    # First query, H = 1, 1, -0.5, -1, -1, -2.5; second, H = 0.
    np.testing.assert_allclose(labels, [[2 / 6, 5 / 6, 1], [1, 1, 1]])


@given(hnp.arrays(np.float32, (3, 4), elements=st.integers(-5, 0)), hnp.arrays(np.float32, (3, 4), elements=st.integers(-5, 0)))
def test_the_transformed_label_is_the_share_of_pairs_and_grows_with_t(weak: np.ndarray, strong: np.ndarray) -> None:
    thresholds = [0, 0.5, 1, 2, 5]
    labels = probability_within(quality_gaps([*weak], [*strong]), thresholds)
    wanted = [[by_hand(w, s, t) for t in thresholds] for w, s in zip(weak, strong, strict=True)]
    np.testing.assert_allclose(labels, wanted)
    assert (np.diff(labels, axis=1) >= 0).all()
    assert (labels[:, -1] == 1).all()  # no gap is larger than 5


@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(0, 1)))
def test_the_objective_is_the_double_sum_of_equation_3(labels: np.ndarray) -> None:
    wanted = [sum(abs(a - b) for a, b in itertools.product(column, column)) / len(column) ** 2 for column in labels.T]
    np.testing.assert_allclose(mean_difference(labels), wanted, atol=1e-12)


def test_the_search_finds_what_trying_every_gap_finds() -> None:
    weak = [*RNG.normal(-4, 1, (15, 3)).astype(np.float32)]  # hardly ever as good as the strong model
    strong = [*RNG.normal(-1, 0.5, (15, 3)).astype(np.float32)]
    gaps = quality_gaps(weak, strong)
    every = sorted({0.0, *(-float(gap) for each in gaps for gap in each if gap < 0)})
    objective = [mean_difference(probability_within(gaps, [t]))[0] for t in every]
    found = best_threshold(gaps, num_thresholds=1_000)
    assert found == pytest.approx(every[int(np.argmax(objective))])
    assert max(objective) > 0.2 > 0.05 > objective[0]  # at t = 0 the labels are all but the same


def test_a_weak_model_that_is_never_worse_needs_no_transformation() -> None:
    assert best_threshold(quality_gaps([np.float32([0, 1])], [np.float32([0, -1])])) == 0


def test_a_query_without_qualities_is_refused() -> None:
    with pytest.raises(LabelError, match=r"Query 1 .* 0 weak and 1 strong"):
        quality_gaps([np.float32([0]), np.float32([])], [np.float32([0]), np.float32([0])])


def test_a_task_without_reference_texts_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"baselines\.names: .*'humaneval' has none .*entry_point"):
        reference_texts("humaneval", {"prompt": "", "test": "", "entry_point": "f"})
