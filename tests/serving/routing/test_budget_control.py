"""The law that the budget control promises, against traffic that tries to break it; and what it costs where nothing drifts."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import PolicyError
from firewall_ray.policy import QuantileTable, Threshold, exact_budget, goes_strong
from serve_app.routing.budget import MAX_TARGETS, BudgetController, ScoreWindow

WINDOW = 1_000
NUM_REQUESTS = 12_000
CALIBRATION = np.random.default_rng(7).normal(size=1_000)


def controller(window: int = WINDOW, default: float = 0.5) -> BudgetController:
    return BudgetController(QuantileTable.from_scores(CALIBRATION), window, default)


def decide(control: BudgetController, target: float, p_weak: float, key: str) -> bool:
    (is_strong,) = goes_strong([p_weak], [key], control.threshold(target))
    control.record(target, p_weak, bool(is_strong))
    return bool(is_strong)


def run(p_weak: Iterable[float], target: float, window: int = WINDOW) -> np.ndarray:
    """The decisions, bool, (num_requests,)."""
    control = controller(window, target)
    return np.array([decide(control, target, float(score), f"prompt {i}") for i, score in enumerate(p_weak)])


def widest_gap(is_strong: np.ndarray, target: float) -> float:
    """max over all stretches of decisions in a row of |strong decisions - target * decisions|."""
    surplus = np.concatenate([[0.0], np.cumsum(is_strong - target)])
    return float(surplus.max() - surplus.min())


def realised_by_window(is_strong: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(is_strong)])
    return (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def test_three_decisions_by_hand() -> None:
    """Window 200: 2% are 4 decisions, so max_step is 1 / (4 - 1). Half of the calibration scores are 0, the others 1."""
    control = BudgetController(QuantileTable.from_scores([0.0, 1.0] * 50), window=200, default=0.5)
    assert control.max_step == pytest.approx(1 / 3)
    # 0.5 of 200 scores are 100: all of those at 0, and the first of those at 1, of which none are to go.
    assert control.threshold(0.5) == Threshold(1.0, 0.0, 0.5)
    control.record(0.5, 0.0, is_strong=True)
    # Surplus 1 - 0.5, so 0.5 - 0.5 / 3 = 1/3. That is 66.7 of the about 100 scores at 0.
    threshold = control.threshold(0.5)
    assert (threshold.value, threshold.strong_fraction) == (0.0, pytest.approx(1 / 3))
    assert threshold.tie_share == pytest.approx(200 / 3 / 100, abs=0.01)
    control.record(0.5, 0.0, is_strong=True)
    assert control.threshold(0.5).strong_fraction == pytest.approx(1 / 6)
    control.record(0.5, 1.0, is_strong=True)
    # Surplus 1.5: 0.5 - 1.5 / 3 = 0, and then nothing goes strong, whatever its score.
    assert control.threshold(0.5) == Threshold(-math.inf, 0.0, 0.0)
    assert control.budget(0.5).realised == 1.0


# The law -------------------------------------------------------------------------------------------------------------


@given(
    scores=st.lists(st.sampled_from([-1e300, -9.0, 0.0, 0.1, 0.5, 9.0, 1e300]) | st.floats(0, 1), max_size=600),
    target=st.floats(0, 1),
    window=st.integers(200, 2_000),
)
def test_no_stretch_of_any_traffic_is_off_by_more_than_2_percent_of_a_window(
    scores: list[float], target: float, window: int
) -> None:
    assert widest_gap(run(scores, target, window), target) <= 0.02 * window + 1e-6


@pytest.mark.parametrize("target", [0.01, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("wants_strong", [True, False])
@pytest.mark.parametrize("goes_on_for", [200, 1_000, NUM_REQUESTS])
def test_an_adversary_who_knows_the_threshold_cannot_break_it(target: float, wants_strong: bool, goes_on_for: int) -> None:
    """Each score lies on the side that it wants, for `goes_on_for` requests; then it wants the other."""
    control = controller(default=target)
    decisions = []
    for i in range(NUM_REQUESTS):
        cut = control.threshold(target).value
        step = -1.0 if wants_strong == ((i // goes_on_for) % 2 == 0) else 1.0
        decisions.append(decide(control, target, (cut if math.isfinite(cut) else 0.0) + step, str(i)))
    assert widest_gap(np.array(decisions), target) <= 0.02 * WINDOW + 1e-6


@pytest.mark.parametrize("target", [0.0, 0.01, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("goes_on_for", [50, 1_000, NUM_REQUESTS])
def test_answers_are_held_to_it_while_the_weak_model_is_overloaded(target: float, goes_on_for: int) -> None:
    """In turn it answers, and gives no answer, for `goes_on_for` requests; what the strong model answers for it counts as well."""
    control = controller(default=target)
    answered_strong, by_score = [], []
    for i, score in enumerate(np.random.default_rng(5).normal(size=NUM_REQUESTS).tolist()):
        is_strong = decide(control, target, score, str(i))
        by_score.append(is_strong)
        is_down = (i // goes_on_for) % 2 == 1 or goes_on_for == NUM_REQUESTS
        answered_strong.append(is_strong or (is_down and control.may_stand_in(target, is_counted=True)))
    assert widest_gap(np.array(answered_strong), target) <= 0.02 * WINDOW + 1e-6
    assert control.budget(target).realised == np.mean(answered_strong[-WINDOW:])
    if target == 0.3:  # the half that is kept for those that need it most
        assert np.mean(by_score) >= 0.1


def test_an_outage_of_the_strong_model_is_not_made_up_for_at_once() -> None:
    """Ten thousand requests that it did not answer would be as many strong calls in a row afterwards."""
    control = controller(default=0.3)
    scores = np.random.default_rng(5).normal(size=3 * WINDOW).tolist()
    for i, score in enumerate(scores):
        if decide(control, 0.3, score, str(i)):
            control.settle(0.3, is_strong=False, is_counted=True)
    after = np.array([decide(control, 0.3, score, str(i)) for i, score in enumerate(scores)])
    assert np.abs(realised_by_window(after) - 0.3).max() <= 0.02


def test_a_strong_answer_that_nobody_decided_takes_its_place_in_the_budget() -> None:
    control = controller(window=200)
    control.settle(0.5, is_strong=True, is_counted=False)
    assert (control.budget(0.5).surplus, control.budget(0.5).realised) == (0.5, 1.0)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_one_prompt_over_and_over_is_held_as_well(target: float) -> None:
    """Its tie always breaks the same way, so only moving the threshold parts it."""
    control = controller(default=target)
    decisions = np.array([decide(control, target, 0.25, "the same") for _ in range(5_000)])
    assert widest_gap(decisions, target) <= 0.02 * WINDOW + 1e-6
    assert decisions.mean() == pytest.approx(target, abs=0.005)


def normal(i: np.ndarray) -> np.ndarray:
    return np.random.default_rng(11).normal(size=len(i))


DRIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the mean is shifted up": lambda i: normal(i) + 1,
    "the mean is shifted down": lambda i: normal(i) - 1,
    "all lie above the calibration": lambda i: normal(i) + 20,
    "all lie below the calibration": lambda i: normal(i) - 20,
    "all are tied": lambda i: np.full(len(i), 3.0),
    "a sudden switch of the mix": lambda i: normal(i) + np.where(i < len(i) // 2, 0, 20),
    "a slow drift": lambda i: normal(i) + i / 1_000,
    "bursts of another kind": lambda i: normal(i) + 10.0 * (i // 300 % 2),
    "a wave": lambda i: normal(i) + 3 * np.sin(i / 300),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_every_window_of_drifting_traffic_is_within_2_points_from_the_first_on(drift: str, target: float) -> None:
    scores = DRIFTS[drift](np.arange(NUM_REQUESTS))
    assert np.abs(realised_by_window(run(scores, target)) - target).max() <= 0.02
    # The threshold of the card is off by 10 points somewhere, else this would show nothing.
    fixed = QuantileTable.from_scores(CALIBRATION).threshold(target)
    uncontrolled = goes_strong(scores, [f"prompt {i}" for i in range(len(scores))], fixed)
    assert np.abs(realised_by_window(uncontrolled) - target).max() > 0.1


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_a_window_without_drift_has_the_deviation_that_is_promised(target: float) -> None:
    """The effective fraction wanders by sqrt(max_step t (1 - t) / 2); a window is off by less than a fixed threshold's chance."""
    control = controller(default=target)
    effective, decisions = [], []
    for i, score in enumerate(np.random.default_rng(3).normal(size=NUM_REQUESTS).tolist()):
        effective.append(control.threshold(target).strong_fraction)
        decisions.append(decide(control, target, score, str(i)))
    promised = math.sqrt(control.max_step * target * (1 - target) / 2)
    # The window of scores adds an error of its own, which the surplus takes up: sd sqrt(t (1 - t) / 1000), at most 0.016.
    assert np.std(effective) == pytest.approx(promised, rel=0.15)
    assert np.abs(realised_by_window(np.array(decisions)) - target).max() < 0.012


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=300),
    st.floats(0, 1),
)
def test_the_effective_fraction_moves_by_at_most_a_step_and_stays_in_0_to_1(scores: list[float], target: float) -> None:
    control = controller(default=target)
    before = control.threshold(target)
    for i, score in enumerate(scores):
        decide(control, target, score, str(i))
        after = control.threshold(target)
        assert 0 <= after.strong_fraction <= 1
        assert abs(after.strong_fraction - before.strong_fraction) <= control.max_step + 1e-12
        assert math.isfinite(after.value) == (0 < after.strong_fraction < 1)
        assert 0 <= after.tie_share <= 1
        before = after


# What is kept of the policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "is_strong"), [(0.0, False), (1.0, True)])
def test_0_and_1_mean_never_and_always(target: float, is_strong: bool) -> None:
    scores = np.random.default_rng(5).normal(size=3_000) * 100
    assert (run(scores, target) == is_strong).all()


@pytest.mark.parametrize(("window", "agreement"), [(1_000, 0.9), (10_000, 0.97)])
def test_without_drift_those_go_strong_who_would_by_rank(window: int, agreement: float) -> None:
    """Against exactly that budget spent with all scores known: as many go strong, and nearly the same ones."""
    scores = np.random.default_rng(9).normal(size=10_000)
    decisions = run(scores, 0.5, window)
    best = exact_budget(scores, [str(i) for i in range(len(scores))], num_strong=5_000)
    assert decisions.sum() == pytest.approx(5_000, abs=0.02 * window)
    assert (decisions == best).mean() > agreement


def test_ranks_are_kept_among_traffic_that_lies_outside_the_calibration() -> None:
    """A feedback without a moving window would send runs of requests one way, whatever their scores."""
    scores = np.random.default_rng(13).normal(size=NUM_REQUESTS) + 20
    settled = slice(2 * WINDOW, None)
    decisions = run(scores, 0.5)[settled]
    best = scores[settled] < np.median(scores[settled])
    assert (decisions == best).mean() > 0.9


def test_before_the_first_request_thresholds_are_the_cards() -> None:
    table = QuantileTable.from_scores(CALIBRATION)
    control = controller(window=len(CALIBRATION))
    for target in np.linspace(0, 1, 101).tolist():
        mine, theirs = (goes_strong(CALIBRATION, ["k"] * 1_000, each.threshold(target)).mean() for each in (control, table))
        assert mine == pytest.approx(theirs, abs=2 / 1_000)


def test_while_live_scores_displace_the_calibrations_thresholds_stay_where_they_are() -> None:
    """Live ones of the same kind: were the lowest quantiles displaced first, the median would be at 0.67 halfway."""
    window = ScoreWindow(WINDOW, QuantileTable.from_scores(CALIBRATION))
    for score in np.random.default_rng(23).normal(size=WINDOW // 2).tolist():
        window.add(score)
    # The standard error of a median of 1,000 is 0.04.
    assert window.threshold(0.5).value == pytest.approx(0, abs=0.16)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.9]) | st.floats(0, 1), min_size=5, max_size=60),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.9]) | st.floats(0, 1), min_size=5, max_size=60),
    st.floats(0, 1),
)
def test_a_full_window_cuts_as_the_quantile_table_of_its_scores(before: list[float], scores: list[float], fraction: float) -> None:
    window = ScoreWindow(len(scores), QuantileTable.from_scores([0.5]))
    for score in before + scores:
        window.add(score)
    keys = [f"key {i}" for i in range(len(scores))]
    mine, table = window.threshold(fraction), QuantileTable.from_scores(scores).threshold(fraction)
    # The two may name the two ends of one gap; what they decide is the same.
    assert (goes_strong(scores, keys, mine) == goes_strong(scores, keys, table)).all()


# Several targets -----------------------------------------------------------------------------------------------------


def test_targets_in_turn_are_each_held() -> None:
    control = controller()
    targets = [0.1, 0.5, 0.9]
    decisions: dict[float, list[bool]] = {target: [] for target in targets}
    scores = np.random.default_rng(17).normal(size=9_000) + 5
    for i, score in enumerate(scores.tolist()):
        target = targets[i % 3]
        decisions[target].append(decide(control, target, score, str(i)))
    for target in targets:
        assert widest_gap(np.array(decisions[target]), target) <= 0.02 * WINDOW + 1e-6
        assert control.budget(target).realised == np.mean(decisions[target][-WINDOW:])


def test_many_targets_do_not_push_out_the_default_nor_fill_the_memory() -> None:
    control = controller(default=0.5)
    control.record(0.5, 0.0, is_strong=True)
    for target in np.linspace(0.001, 0.4, 10 * MAX_TARGETS).tolist():
        control.record(target, 0.0, is_strong=True)
    assert control.budget(0.5).surplus == 0.5
    assert len(control._budgets) == MAX_TARGETS


def test_another_default_keeps_the_window_of_scores() -> None:
    control = controller(default=0.5)
    for i in range(2_000):
        decide(control, 0.5, 20 + i % 10, str(i))
    control.default = 0.3
    assert 20 <= control.threshold(0.3).value <= 29


def test_the_same_traffic_is_decided_the_same() -> None:
    scores = np.random.default_rng(19).normal(size=3_000)
    assert (run(scores, 0.3) == run(scores, 0.3)).all()


def test_a_window_that_is_too_short_is_refused_by_its_field() -> None:
    with pytest.raises(PolicyError, match=r"budget_control\.window is 199, must be at least 200"):
        controller(window=199)
