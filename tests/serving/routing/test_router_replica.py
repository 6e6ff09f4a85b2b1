"""A router replica in process, without Ray: how it spends its budget, and what happens to requests while a router is swapped."""

import asyncio
import threading
import time
from typing import Any

import pytest
from router_fakes import WINDOW, FakePredictor, Replica, budgets_of, main_router, replica, user_config

from firewall_ray.errors import ModelError
from firewall_ray.tasks.base import prompt_id
from serve_app.crossing import ReplicaFailed
from serve_app.routing.decision import DecisionRequest, Spent

# Budget control ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 0.2, 0.8])
def test_the_budget_is_held_where_all_scores_lie_above_the_calibration(target: float | None) -> None:
    async def test() -> None:
        scores = [5 + i % 100 / 100 for i in range(2 * WINDOW)]
        assert await (await replica(window=None)).share_strong(scores, target) == 0
        assert await (await replica()).share_strong(scores, target) == pytest.approx(target or 0.5, abs=0.01)

    asyncio.run(test())


def test_a_decision_names_the_target_and_the_threshold_that_it_met() -> None:
    async def test() -> None:
        router = await replica()
        await router.share_strong([5.0] * 30)
        (decision,) = await router.decide(["5.0"], None, True, True)
        assert decision.strong_fraction == 0.5
        assert decision.threshold != main_router(router).predictor.card.quantiles.threshold(0.5).value

    asyncio.run(test())


def test_only_what_a_model_will_answer_uses_up_budget() -> None:
    """/v1/route and readiness ask without an answer in view."""

    async def test() -> None:
        router = await replica()
        first = await router.decide(["0.1", "0.9"], None, True)
        for _ in range(50):
            assert await router.decide(["0.1", "0.9"], None, True) == first
        assert router.seen.values.keys() == {("firewall_router_config_refused", ""), ("firewall_score_drift", "")}

    asyncio.run(test())


def test_a_request_of_several_prompts_is_one_decision() -> None:
    async def test() -> None:
        router = await replica()
        await router.decide(["0.9", "0.1", "0.8"], None, True, True)
        assert budgets_of(router).budget(0.5).surplus == 0.5  # one, strong, where a half was due

    asyncio.run(test())


def test_metrics_say_how_the_default_is_kept() -> None:
    async def test() -> None:
        router = await replica(strong_fraction=0.25)
        await router.share_strong([0.1, 0.9, 0.9, 0.9])
        await router.share_strong([0.1] * 10, target=0.6)
        seen = router.seen.values
        assert (seen["firewall_budget", "target"], seen["firewall_budget", "realised"]) == (0.25, 0.25)
        assert seen["firewall_budget", "effective"] == 0.25  # one strong of four: nothing to make up for

    asyncio.run(test())


def test_a_swapped_router_begins_anew_and_another_default_does_not() -> None:
    async def test() -> None:
        router = await replica()
        await router.share_strong([5.0] * WINDOW)
        held = budgets_of(router)
        await router.reconfigure(user_config(strong_fraction=0.3))
        assert budgets_of(router) is held
        assert held.default == 0.3
        await router.reconfigure(user_config("hard_block", strong_fraction=0.3))
        assert budgets_of(router) is not held
        # By the new card, at once: 0.3 of 10.00 to 10.99.
        (decision,) = await router.decide(["0.5"], None, True, True)
        assert decision.threshold == pytest.approx(10.3, abs=0.02)

    asyncio.run(test())


def test_a_replica_says_whether_there_is_room_for_a_stand_in_and_is_told_what_was_spent_otherwise() -> None:
    async def test() -> None:
        router = await replica(strong_fraction=0.5)
        allowed = [await router.may_stand_in(None, False, "main") for _ in range(10)]
        # max_step is 1/3, and each takes half a call of surplus: 0.5, 1/3, and at 1/6 it is less than half of the target.
        assert allowed == [True, True] + [False] * 8
        await router.decide_all([], [Spent(None, "weak", "strong"), Spent(0.2, "strong", None)])
        assert (budgets_of(router).budget(0.5).surplus, budgets_of(router).budget(0.2).surplus) == (0.0, 0.8)
        unlimited = await replica(window=None)
        assert await unlimited.may_stand_in(0.2, True, "main")
        await unlimited.decide_all([], [Spent(None, "weak", "strong")])

    asyncio.run(test())


# Drift ---------------------------------------------------------------------------------------------------------------


def test_scores_unlike_the_calibration_show_as_drift_and_a_swap_forgets_them() -> None:
    async def test() -> None:
        router = await replica(window=None)
        await router.share_strong([i % 100 / 100 for i in range(1_000)])
        assert router.seen.values["firewall_score_drift", ""] < 0.01
        await router.share_strong([0.9] * 500)
        assert router.seen.values["firewall_score_drift", ""] > 0.25
        await router.reconfigure(user_config("hard_block"))
        assert router.seen.values["firewall_score_drift", ""] == 0

    asyncio.run(test())


def test_gauges_that_stand_are_said_again_at_each_health_check() -> None:
    """Ray forgets them otherwise, and an alert on a refused config would end with the first scrapes."""

    async def test() -> None:
        router = await replica(window=None)
        await router.reconfigure({})
        router.seen.values.clear()
        router.check_health()
        assert router.seen.values == {("firewall_router_config_refused", ""): 1, ("firewall_score_drift", ""): 0}

    asyncio.run(test())


def test_readiness_and_route_requests_are_no_traffic_for_drift() -> None:
    async def test() -> None:
        router = await replica(window=None)
        await router.decide(["0.9"] * 1_000, None, True)
        assert router.seen.values["firewall_score_drift", ""] == 0

    asyncio.run(test())


def test_a_request_that_cannot_be_decided_fails_alone() -> None:
    async def test() -> None:
        router = await replica(window=None)
        before, wrong, after = await router.decide_all(
            [
                DecisionRequest(["0.1", "0.9"], 0.5, are_questions=True, counts=True),
                DecisionRequest(["0.1"], 1.5, are_questions=True, counts=True),
                DecisionRequest(["0.8"], 0.5, are_questions=True, counts=True),
            ]
        )
        assert (type(wrong), str(wrong)) == (ReplicaFailed, "PolicyError")  # the ingress need not import it
        assert not isinstance(before, Exception)
        assert not isinstance(after, Exception)
        assert [decision.score for decision in (*before, *after)] == pytest.approx([0.1, 0.9, 0.8])

    asyncio.run(test())


# Swaps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, WINDOW])
def test_a_request_under_way_is_decided_by_the_router_that_it_began_with(window: int | None) -> None:
    """Prompt template, score, threshold and version are of one router: half of each would send 10.1 at 0.5 to the weak model."""

    async def test() -> None:
        router = await replica(window)
        held = router.predictors["soft_block"].held = threading.Event()
        under_way = asyncio.create_task(router.decide(["0.1"], None, True, True))
        await asyncio.sleep(0)
        await router.reconfigure(user_config("hard_block"))
        held.set()
        (before,), (after,) = await under_way, await router.decide(["0.1"], None, True, True)
        assert (before.router, before.score, before.route) == ("one", pytest.approx(0.1), "strong")
        assert (after.router, after.score, after.route) == ("two", pytest.approx(10.1), "strong")

    asyncio.run(test())


def test_requests_of_before_and_after_a_swap_are_scored_each_by_its_own_router() -> None:
    async def test() -> None:
        router = await replica()
        one, two = router.predictors.values()
        calls = [(one, ["0.1", "0.5"]), (two, ["0.2"]), (one, ["0.3"]), (two, ["0.4", "0.6"])]

        async def scored(predictor: Any, prompts: list[str]) -> list[float]:
            with router._slices.scoring([(predictor, prompts)]) as (scores,):
                return [float(each) for each in (await scores).p_weak.round(3)]

        found = await asyncio.gather(*(scored(*call) for call in calls))
        assert found == [pytest.approx(each) for each in ([0.1, 0.5], [10.2], [0.3], [10.4, 10.6])]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"router": "missing", "strong_fraction": 0.1}, "there is no missing"),
        ({"router": "soft_block", "strong_fraction": 1.5}, "strong_fraction"),
        ({"router": "soft_block"}, "strong_fraction"),
        ({"router": "soft_block", "strong_fraction": 0.1, "treshold": 0.2}, "treshold"),
        ({}, "router"),
    ],
)
def test_what_cannot_be_applied_is_left_out_and_said(wrong: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        router = await replica(strong_fraction=0.4)
        await router.reconfigure(wrong)
        (decision,) = await router.decide(["0.1"], None, True)
        assert (decision.router, decision.strong_fraction) == ("one", 0.4)
        assert router.seen.values["firewall_router_config_refused", ""] == 1
        assert "not applied; version one stays" in caplog.text
        assert why in caplog.text
        await router.reconfigure(user_config("hard_block"))
        assert router.seen.values["firewall_router_config_refused", ""] == 0
        assert (await router.decide(["0.1"], None, True))[0].router == "two"

    asyncio.run(test())


def test_a_replica_does_not_start_with_a_user_config_that_cannot_be_applied() -> None:
    async def test() -> None:
        with pytest.raises(ModelError, match="missing"):
            await replica(router="missing")

    asyncio.run(test())


def test_a_replica_that_starts_under_a_refused_user_config_begins_with_what_the_others_have(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Serve hands it the newest, over which it would die again and again."""

    async def test() -> None:
        running, later = Replica(), Replica()
        later._last_applied = running.memory  # type: ignore[assignment]
        await running.reconfigure(user_config("hard_block", strong_fraction=0.4))
        for wrong in (user_config("missing"), {"router": "hard_block"}, {}):
            await running.reconfigure(wrong)
            later._arms = None
            await later.reconfigure(wrong)
            (decision,) = await later.decide(["0.1"], None, True)
            assert (decision.router, decision.strong_fraction) == ("two", 0.4)
            assert later.seen.values["firewall_router_config_refused", ""] == 1
        assert "not applied; version two stays" in caplog.text
        await later.reconfigure(user_config("soft_block"))
        assert later.seen.values["firewall_router_config_refused", ""] == 0
        assert (await later.decide(["0.1"], None, True))[0].router == "one"

    asyncio.run(test())


@pytest.mark.parametrize("others_run", [True, False])
def test_a_router_that_was_trained_anew_under_a_pinned_version_starts_all_the_same(others_run: bool) -> None:
    """The version that was pinned is in no store any more; to stop would be worse than the one that there is."""

    async def test() -> None:
        pinned = {**user_config(strong_fraction=0.4), "version": "one"}
        running, later = Replica(), Replica()
        if others_run:
            await running.reconfigure(pinned)
            later._last_applied = running.memory  # type: ignore[assignment]
        later.predictors["soft_block"] = FakePredictor("anew")
        await later.reconfigure(pinned)
        (decision,) = await later.decide(["0.1"], None, True)
        assert (decision.router, decision.strong_fraction) == ("anew", 0.4)
        assert later.seen.values["firewall_router_config_refused", ""] == 1

    asyncio.run(test())


def test_a_query_has_the_name_that_offline_routing_gives_its_prompt_however_it_was_asked() -> None:
    async def ids() -> list[str | None]:
        replica = Replica()
        await replica.reconfigure({"router": "soft_block", "strong_fraction": 0.5})
        asked = await replica.decide(["0.25"], None, True) + await replica.decide(["one: 0.25", "0.25"], None, False)
        return [decision.query_id for decision in asked]

    of_question, of_prompt, of_other = asyncio.run(ids())
    assert of_question == of_prompt == prompt_id("one: 0.25")
    assert of_other == prompt_id("0.25")


# Slices --------------------------------------------------------------------------------------------------------------


def test_a_request_of_one_text_does_not_wait_for_one_of_a_thousand() -> None:
    """Both are decided, the small one after a slice or two: not after the three seconds that the other takes."""

    async def test() -> None:
        router = await replica(window=None)
        router.predictors["soft_block"].s_a_text = 0.003
        large = asyncio.create_task(router.decide(["0.1"] * 1_000, None, True))
        await asyncio.sleep(0.1)
        for _ in range(3):
            began = time.perf_counter()
            (decision,) = await router.decide(["0.9"], None, True)
            assert decision.score == pytest.approx(0.9)
            assert time.perf_counter() - began < 0.5
        assert not large.done()
        large.cancel()

    asyncio.run(test())


def test_a_request_whose_client_left_is_scored_no_further() -> None:
    async def test() -> None:
        router = await replica(window=None)
        predictor = router.predictors["soft_block"]
        predictor.s_a_text = 0.003
        large = asyncio.create_task(router.decide(["0.1"] * 1_000, None, True))
        await asyncio.sleep(0.1)
        large.cancel()
        await asyncio.sleep(0.2)  # the slice that was under way
        num_texts = predictor.num_texts
        assert 0 < num_texts < 200
        await asyncio.sleep(0.2)
        assert predictor.num_texts == num_texts

    asyncio.run(test())


def test_requests_of_the_same_moment_are_scored_together() -> None:
    async def test() -> None:
        router = await replica(window=None)
        decided = await router.decide_all([DecisionRequest([f"0.{i}"], 0.5, True, True) for i in range(10)])
        assert [each[0].score for each in decided if isinstance(each, list)] == pytest.approx([i / 10 for i in range(10)])
        assert router.predictors["soft_block"].num_calls == 1

    asyncio.run(test())


def test_a_text_that_cannot_be_scored_fails_its_own_slice_and_no_later_one() -> None:
    async def test() -> None:
        router = await replica(window=None)
        (wrong,) = await router.decide_all([DecisionRequest(["no number"], 0.5, True, True)])
        assert (type(wrong), str(wrong)) == (ReplicaFailed, "ValueError")
        assert (await router.decide(["0.5"], None, True))[0].score == 0.5

    asyncio.run(test())
