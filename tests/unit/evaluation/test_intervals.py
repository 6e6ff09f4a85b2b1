import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import stats

from firewall_ray import policy
from firewall_ray.errors import EvaluationError
from firewall_ray.evaluation.intervals import BATCH, bootstrap_curves, intervals, paired_bootstrap, percentile_interval
from firewall_ray.evaluation.metrics import curve_apgr, performance_curve


def test_the_spread_of_a_mean_is_its_closed_form() -> None:
    """sqrt(p (1 - p) / N), not a factor of sqrt(num_resamples) less: the mean of Bernoulli pass rates."""
    strong = (np.arange(900) < 540).astype(float)  # p = 0.6 exactly; sd sqrt(0.6 * 0.4 / 900) = 0.01633
    resampled = bootstrap_curves(np.zeros(900), strong, {"any": np.arange(900)}, num_resamples=4_000)["any"][:, -1]
    # The sd of an estimated sd is sd / sqrt(2 B), 1.1%: 5% are more than four of them.
    assert resampled.std() == pytest.approx(0.01633, rel=0.05)
    interval = percentile_interval(0.6, resampled)
    assert (interval.low, interval.high) == pytest.approx((0.6 - 1.96 * 0.01633, 0.6 + 1.96 * 0.01633), abs=0.002)


def test_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    weak, strong = rng.random(200) / 2, 0.3 + rng.random(200) / 2
    order = np.argsort(rng.random(200) - strong)
    ours = percentile_interval(0, curve_apgr(bootstrap_curves(weak, strong, {"r": order}, 3_000)["r"]))
    position = np.argsort(order)

    def apgr_of_rows(rows: np.ndarray) -> float:
        return float(curve_apgr(performance_curve(weak[rows], strong[rows], np.argsort(position[rows], kind="stable"))))

    theirs = stats.bootstrap(
        (np.arange(200),), apgr_of_rows, n_resamples=3_000, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    # A percentile bound of 3,000 resamples has a standard error near 0.05 sd; a fifth of one sd is four of them.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.2 * (theirs.high - theirs.low) / 3.92)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """400 experiments with a known APGR: 95% intervals should cover it in 380, give or take 4.4."""
    rng = np.random.default_rng(0)
    # Two kinds of queries, half each: kind A (gain 1) and kind B (gain 0). A router that ranks A's first with probability 0.8:
    # its expected gain curve is piecewise linear. A share 0.8 of the queries marked 'first' are A, of the rest 0.2 are.
    # So PGR rises to 0.8 at f = 0.5, then to 1: APGR = 0.5 * 0.8/2 + 0.5 * (0.8 + 1)/2 = 0.65.
    covered = 0
    for experiment in range(400):
        first = rng.random(300) < 0.5
        gain = (rng.random(300) < np.where(first, 0.8, 0.2)).astype(float)
        order = np.lexsort((rng.random(300), ~first))
        resampled = bootstrap_curves(np.zeros(300), gain, {"r": order}, 300, seed=experiment)["r"]
        interval = percentile_interval(0, curve_apgr(resampled))
        covered += interval.low <= 0.65 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_random_routing_spreads_as_a_random_order_does() -> None:
    """On 164 problems a random order's APGR says little (DESIGN section 4), and the interval must show it."""
    rng = np.random.default_rng(0)
    weak, strong = rng.binomial(1, 0.4, 164) * 1.0, rng.binomial(1, 0.8, 164) * 1.0
    resampled = curve_apgr(bootstrap_curves(weak, strong, {"random": None}, 2_000)["random"])
    orders = [curve_apgr(performance_curve(weak, strong, rng.permutation(164))) for _ in range(2_000)]
    assert np.median(resampled) == pytest.approx(0.5, abs=0.02)
    assert np.std(resampled) >= 0.95 * np.std(orders)


def test_a_router_against_itself_differs_by_nothing() -> None:
    rng = np.random.default_rng(0)
    weak, strong, order = rng.random(80) / 2, 0.2 + rng.random(80) / 2, rng.permutation(80)
    resampled = bootstrap_curves(weak, strong, {"a": order, "b": order}, 200)
    curve = performance_curve(weak, strong, order)
    difference = paired_bootstrap("apgr", curve, curve, resampled["a"], resampled["b"])
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_pairing_finds_a_difference_that_the_routers_own_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    weak, strong = rng.binomial(1, 0.4, 400) * 1.0, rng.binomial(1, 0.7, 400) * 1.0
    noise = rng.random(400)
    orders = {"good": np.argsort(-0.30 * (strong - weak) + noise), "less": np.argsort(-0.22 * (strong - weak) + noise)}
    resampled = bootstrap_curves(weak, strong, orders, 1_000)
    curves = {name: performance_curve(weak, strong, order) for name, order in orders.items()}
    good, less = (intervals(curves[name], resampled[name])["apgr"] for name in ("good", "less"))
    assert good.low < less.high  # alone, they overlap
    difference = paired_bootstrap("apgr", curves["good"], curves["less"], resampled["good"], resampled["less"])
    assert difference.value == pytest.approx(good.value - less.value)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p_value < 0.05


def test_the_p_value_is_uniform_when_there_is_no_difference() -> None:
    """Two random orders of 150 queries, 200 times: p below 0.1 in about 20 of them (sd 4.2)."""
    rng = np.random.default_rng(0)
    small = 0
    for experiment in range(200):
        gain = rng.binomial(1, 0.5, 150) * 1.0
        orders = {"a": rng.permutation(150), "b": rng.permutation(150)}
        resampled = bootstrap_curves(np.zeros(150), gain, orders, 200, seed=experiment)
        curves = [performance_curve(np.zeros(150), gain, order) for order in orders.values()]
        small += paired_bootstrap("apgr", *curves, resampled["a"], resampled["b"]).p_value < 0.1
    assert 8 <= small <= 38


def test_undefined_resamples_are_left_out_and_counted() -> None:
    # One query in four has a gain; a resample misses it with probability (3/4)^4 = 0.316, and then has no gap.
    weak, strong, order = np.zeros(4), np.array([1.0, 0, 0, 0]), np.arange(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervals(performance_curve(weak, strong, order), bootstrap_curves(weak, strong, {"r": order})["r"])
    assert found["apgr"].num_undefined == pytest.approx(316, abs=60)
    assert np.isfinite([found["apgr"].low, found["apgr"].high]).all()
    assert found["pass_rate_50"].num_undefined == 0


def test_nothing_defined_gives_nan_bounds() -> None:
    interval = percentile_interval(0.5, [float("nan")] * 3)
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.num_undefined == 3


def test_the_seed_repeats_an_interval() -> None:
    weak, strong, orders = np.zeros(30), np.linspace(0, 1, 30), {"a": np.arange(30), "random": None}
    one, same, other, negative = (bootstrap_curves(weak, strong, orders, 20, seed) for seed in (4, 4, 5, -4))
    assert all(np.array_equal(one[name], same[name]) for name in orders)
    assert not np.array_equal(one["a"], other["a"])
    assert not np.array_equal(one["a"], negative["a"])


@pytest.mark.parametrize("num_queries", [1, 2, 7, 10, 64, 301])
def test_the_bootstrap_gathers_constants_once_and_equals_a_curve_of_each_resample(num_queries: int) -> None:
    """Against `performance_curve` of the queries as they were drawn, each as a row of its own: tied scores and rates, gains below
    0, random routing twice, and a batch of resamples that is not full."""
    rng = np.random.default_rng(num_queries)
    weak, strong = rng.integers(0, 9, num_queries) / 8, rng.integers(0, 9, num_queries) / 8
    ids = [f"q{row}" for row in range(num_queries)]
    orders = {
        "tied": policy.rank(rng.integers(0, 3, num_queries), ids),
        "random": None,
        "by gain": policy.rank(weak - strong, ids),
        "random again": None,
    }
    num_resamples = BATCH + 3
    found = bootstrap_curves(weak, strong, orders, num_resamples, seed=5)
    draws, shuffles = (np.random.default_rng(child) for child in np.random.SeedSequence([False, 5]).spawn(2))
    for b in range(num_resamples):
        rows = draws.integers(num_queries, size=num_queries)
        for name, order in orders.items():
            position = np.argsort(shuffles.permutation(num_queries) if order is None else order)
            wanted = performance_curve(weak[rows], strong[rows], np.argsort(position[rows], kind="stable"))
            np.testing.assert_allclose(found[name][b], wanted, rtol=0, atol=1e-12)


def test_the_bootstraps_memory_grows_with_the_queries_and_not_with_resamples_or_routers() -> None:
    num_queries = 50_000
    rng = np.random.default_rng(0)
    weak, strong = rng.random(num_queries), rng.random(num_queries)

    def peak(num_resamples: int, num_routers: int) -> float:
        orders = {f"router {number}": rng.permutation(num_queries) for number in range(num_routers)}
        tracemalloc.start()
        bootstrap_curves(weak, strong, orders, num_resamples)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest / num_queries

    few, many = peak(BATCH, 1), peak(6 * BATCH, 6)
    assert few < 80
    assert many < few + 5  # the curves themselves: 88 bytes for each resample and router


def test_no_queries_have_no_curve() -> None:
    assert np.isnan(bootstrap_curves([], [], {"a": np.arange(0), "random": None}, 3)["random"]).all()


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5])
def test_a_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(EvaluationError, match="between 0 and 1"):
        percentile_interval(0.5, [0.4, 0.6], confidence)
