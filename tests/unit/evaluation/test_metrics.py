import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from firewall_ray.errors import EvaluationError
from firewall_ray.evaluation.metrics import (
    METRICS,
    UndefinedMetricWarning,
    apgr,
    curve_apgr,
    curve_apgr_mean,
    curve_cpt,
    curve_pass_rate,
    evaluate,
    oracle_p_weak,
    performance_curve,
    pgr,
)

CHECK_VECTOR = [10, 16, 22, 27, 31, 34, 37, 39, 41, 42, 43]


def bits(text: str) -> np.ndarray:
    return np.array([int(bit) for bit in text], dtype=float)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """p_weak (often tied), weak and strong pass rates of 4 samples with strong better on average, and ids."""
    size = draw(st.integers(2, 60))
    rates = st.lists(st.integers(0, 4), min_size=size, max_size=size)
    weak, strong = np.array(draw(rates)) / 4, np.array(draw(rates)) / 4
    assume(strong.mean() - weak.mean() > 0.02)
    p_weak = np.array(draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))) / 20
    return p_weak, weak, strong, [f"q{i}" for i in range(size)]


def test_the_check_vector_of_the_design() -> None:
    assert curve_apgr(CHECK_VECTOR) == pytest.approx(0.65303, abs=5e-6)
    assert curve_apgr_mean(CHECK_VECTOR) == pytest.approx(0.63912, abs=5e-6)
    # 20%: 16.6 lies 0.6/6 of the way from 16 to 22; 50%: 26.5 is 4.5/5 from 22 to 27; 80%: 36.4 is 2.4/3 from 34 to 37.
    assert [float(curve_cpt(CHECK_VECTOR, share)) for share in (0.2, 0.5, 0.8)] == pytest.approx([0.11, 0.29, 0.58])
    assert [float(curve_pass_rate(CHECK_VECTOR, f)) for f in (0.2, 0.5, 0.8, 0.95)] == pytest.approx([22, 34, 41, 42.5])


def test_four_queries_by_hand() -> None:
    """Ranked: b (gain 1), d (gain 0), a (gain 1/2), c (gain -1/2). Weak mean (0.5+0+1+1)/4 = 0.625, strong 0.875."""
    scores, weak, strong = [0.7, 0.1, 0.9, 0.3], [0.5, 0, 1, 1], [1, 1, 0.5, 1]
    curve = performance_curve(weak, strong, np.array([1, 3, 0, 2]))
    # Whole queries: 0.625, 0.875, 0.875, 1.0, 0.875 at f = 0, 1/4, 1/2, 3/4, 1; f = 0.1 is 0.4 of the first query.
    assert curve == pytest.approx([0.625, 0.725, 0.825, 0.875, 0.875, 0.875, 0.925, 0.975, 0.975, 0.925, 0.875])
    found = evaluate(scores, weak, strong, ["a", "b", "c", "d"])
    # PGR = (curve - 0.625) / 0.25 = 0 .4 .8 1 1 1 1.2 1.4 1.4 1.2 1; sum 10.4; trapezoid (10.4 - 0.5) / 10.
    assert found["apgr"] == pytest.approx(0.99)
    assert found["apgr_mean"] == pytest.approx(10.4 / 11)
    assert found["pass_rate_20"] == pytest.approx(0.825)
    assert found["cpt_50"] == pytest.approx(0.125)  # from 0.4 at 0.1 to 0.8 at 0.2: a quarter of the way


@pytest.mark.parametrize("case", [0, 1, 2])
def test_routellm_golden_cases(shared_data: Path, case: int) -> None:
    """Computed by RouteLLM's own code, which cuts at decile thresholds; exact fractions agree to 1e-3."""
    golden = json.loads((shared_data / "routellm_apgr_golden.json").read_text())["gsm8k"]
    weak, strong = bits(golden["weak_correct_bits"]), bits(golden["strong_correct_bits"])
    expected = golden["cases"][case]
    rng = np.random.default_rng(expected["seed"])
    draw: dict[int, Callable[[], np.ndarray]] = {
        0: lambda: rng.random(len(weak)),
        1: lambda: rng.standard_normal(len(weak)),
        2: lambda: rng.beta(0.5, 0.5, len(weak)),
        3: lambda: 0.3 * (strong - weak) + rng.random(len(weak)),
        4: lambda: -0.3 * (strong - weak) + rng.random(len(weak)),
        5: lambda: np.round(rng.random(len(weak)), 2),
    }
    found = evaluate(-draw[expected["seed"]](), weak, strong, [str(i) for i in range(len(weak))])
    assert found["apgr"] == pytest.approx(expected["apgr"], abs=1e-3)
    assert found["apgr_mean"] == pytest.approx(expected["my_extra_mean_pgr_over_11_points"], abs=1e-3)
    for percent in (20, 50, 80):
        # RouteLLM's strong shares are off the deciles by up to half a query of 1,307.
        assert found[f"cpt_{percent}"] == pytest.approx(float(expected[f"cpt_{percent}"].rstrip("%")) / 100, abs=6e-3)


def test_a_constant_score_comes_out_as_random_routing() -> None:
    rng = np.random.default_rng(0)
    weak, strong = rng.binomial(1, 0.4, 4_000), rng.binomial(1, 0.7, 4_000)
    ids = [f"q{i}" for i in np.argsort(weak - strong)]  # row order by gain: what must not leak
    values = [apgr(np.full(4_000, 0.5), weak, strong, ids, seed) for seed in range(30)]
    # sd of a random order: sqrt(var(gain) / 12 / N) / gap = sqrt(0.45 / 12 / 4000) / 0.3 = 0.010; of 30 means 0.0019.
    assert np.std(values) == pytest.approx(0.010, abs=0.004)
    assert np.mean(values) == pytest.approx(0.5, abs=0.008)


@pytest.mark.parametrize(("weak", "strong"), [([0.5, 0.5], [0.5, 0.5]), ([1, 0], [0, 0]), ([0.1, 0.2], [0.3, 0.0])])
def test_no_gap_is_nan_with_a_warning_and_never_a_number(weak: list[float], strong: list[float]) -> None:
    rates = np.array(weak, dtype=np.float32), np.array(strong, dtype=np.float32)  # 0.3f - 0.1f - 0.2f is not quite 0
    with pytest.warns(UndefinedMetricWarning, match="not above"):
        found = evaluate([0.1, 0.2], *rates, ["a", "b"])
    assert all(np.isnan(value) for name, value in found.items() if not name.startswith("pass_rate"))
    assert np.isfinite(found["pass_rate_50"])  # the pass rates themselves are well defined


def test_no_queries_is_nan_with_a_warning() -> None:
    with pytest.warns(UndefinedMetricWarning):
        found = evaluate([], [], [], [])
    assert all(np.isnan(value) for value in found.values())


def test_cpt_is_nan_when_the_target_is_never_reached() -> None:
    assert np.isnan(curve_cpt(CHECK_VECTOR, 1.01))


def test_cpt_is_the_first_crossing_of_a_curve_that_falls_back() -> None:
    # Reaches 50% at 0.05 (0 to 10 over the first step), falls to 0, comes back at the end.
    assert curve_cpt([0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 10], 0.5) == pytest.approx(0.05)


def test_stacked_curves_give_each_curves_metrics() -> None:
    other = [0, 2, 1, 3, 3, 9, 4, 8, 9, 9, 10]
    undefined = [5] * 11
    stack = np.array([[CHECK_VECTOR, other], [undefined, CHECK_VECTOR]], dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        for metric in METRICS.values():
            expected = [[metric(CHECK_VECTOR), metric(other)], [metric(undefined), metric(CHECK_VECTOR)]]
            np.testing.assert_allclose(metric(stack), np.array(expected, dtype=float))


def test_counts_are_repeated_queries() -> None:
    """The bootstrap's short cut against what it stands for: a table in which each query is written so often."""
    rng = np.random.default_rng(1)
    p_weak, weak, strong = rng.random(50), rng.random(50), rng.random(50)
    counts = rng.integers(0, 4, 50)
    rows = np.repeat(np.arange(50), counts)
    long = performance_curve(weak[rows], strong[rows], np.argsort(p_weak[rows], kind="stable"))
    np.testing.assert_allclose(performance_curve(weak, strong, np.argsort(p_weak), counts=counts), long)


@given(outcomes(), st.randoms())
def test_the_row_order_changes_no_metric(data: tuple, random: object) -> None:
    p_weak, weak, strong, ids = data
    rows = list(range(len(ids)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    shuffled = evaluate(p_weak[rows], weak[rows], strong[rows], [ids[i] for i in rows])
    assert shuffled == pytest.approx(evaluate(p_weak, weak, strong, ids), abs=1e-9)


@given(outcomes())
def test_a_monotone_transform_of_the_scores_changes_no_metric(data: tuple) -> None:
    p_weak, weak, strong, ids = data
    assert evaluate(np.exp(3 * p_weak) - 7, weak, strong, ids) == evaluate(p_weak, weak, strong, ids)


@given(outcomes())
def test_no_curve_lies_above_the_oracles_or_below_the_reversed_oracles(data: tuple) -> None:
    p_weak, weak, strong, ids = data
    oracle = oracle_p_weak(weak, strong)
    assert apgr(-oracle, weak, strong, ids) - 1e-9 <= apgr(p_weak, weak, strong, ids) <= apgr(oracle, weak, strong, ids) + 1e-9


@given(outcomes())
def test_reversing_untied_scores_mirrors_apgr_about_one_half(data: tuple) -> None:
    """The reversed ranking sends the last f: PGR'(f) = 1 - PGR(1 - f), so the areas add up to 1."""
    _, weak, strong, ids = data
    scores = np.arange(len(ids)) * 1.0
    assert apgr(scores, weak, strong, ids) + apgr(-scores, weak, strong, ids) == pytest.approx(1, abs=1e-9)


@given(outcomes())
def test_pgr_starts_at_0_and_ends_at_1(data: tuple) -> None:
    _, weak, strong, ids = data
    recovered = pgr(performance_curve(weak, strong, np.arange(len(ids))))
    assert (recovered[0], recovered[-1]) == (0, 1)


def test_bad_rates_are_named() -> None:
    with pytest.raises(EvaluationError, match=r"pass_rate_strong is 1\.5 for query 'b'"):
        evaluate([0.1, 0.2], [0, 0], [1, 1.5], ["a", "b"])
    with pytest.raises(EvaluationError, match="pass_rate_weak is nan for query 'a'"):
        evaluate([0.1, 0.2], [float("nan"), 0], [1, 1], ["a", "b"])
    with pytest.raises(EvaluationError, match="shape"):
        evaluate([0.1, 0.2], [0], [1, 1], ["a", "b"])
