"""A canary in a router replica: who meets it, what it decides by, and how it ends."""

import asyncio
from typing import Any

import pytest
from router_fakes import WINDOW, Replica, main_router, replica, user_config

from serve_app.routing.decision import Decision, DecisionRequest, Spent

TEXTS = [f"{i} 0.{i % 100:02}" for i in range(2_000)]  # 2,000 questions; the score is the last number


async def with_canary(window: int | None = None, **canary: Any) -> Replica:
    router = await replica(window, strong_fraction=0.5)
    await router.reconfigure({**user_config(), "canary": canary})
    return router


async def decisions(router: Replica, texts: list[str], target: float | None = None) -> list[Decision]:
    decided = await router.decide_all([DecisionRequest([text], target, are_questions=True, counts=True) for text in texts])
    return [each[0] for each in decided if not isinstance(each, Exception)]


def test_its_share_of_the_questions_is_decided_by_the_canarys_router_and_each_always_by_the_same() -> None:
    async def test() -> None:
        router = await with_canary(share=0.2, router="hard_block")
        decided = await decisions(router, TEXTS)
        assert [(each.arm == "canary") == (each.router == "two") for each in decided] == [True] * len(TEXTS)
        # Binomial: 400 of 2,000, with a standard deviation of 18.
        assert sum(each.arm == "canary" for each in decided) == pytest.approx(400, abs=72)
        assert {each.headers().get("x-firewall-arm") for each in decided} == {None, "canary"}
        again = await decisions(router, TEXTS)
        assert [each.arm for each in again] == [each.arm for each in decided]
        # As of its own card: the other's scores lie ten above.
        assert {each.route for each in decided if each.arm == "canary" and each.score == pytest.approx(10.1)} == {"strong"}

    asyncio.run(test())


def test_another_fraction_alone_is_a_canary_of_the_same_router_and_gives_way_to_what_a_client_asks_for() -> None:
    async def test() -> None:
        router = await with_canary(share=0.5, strong_fraction=0.1)
        decided = await decisions(router, TEXTS)
        assert router.num_loaded == 1
        assert {(each.arm, each.strong_fraction) for each in decided} == {("main", 0.5), ("canary", 0.1)}
        for arm, target in (("main", 0.5), ("canary", 0.1)):
            mine = [each.route == "strong" for each in decided if each.arm == arm]
            assert sum(mine) / len(mine) == pytest.approx(target, abs=0.05)
        assert {each.strong_fraction for each in await decisions(router, TEXTS[:50], target=0.7)} == {0.7}

    asyncio.run(test())


def test_each_arm_holds_its_budget_and_hears_what_became_of_its_own_decisions() -> None:
    async def test() -> None:
        router = await with_canary(window=WINDOW, share=0.5, router="hard_block", strong_fraction=0.2)
        # All far above what either was calibrated on: without budget control none would go strong.
        decided = await decisions(router, [f"{i} 50" for i in range(4 * WINDOW)])
        for arm, target in (("main", 0.5), ("canary", 0.2)):
            mine = [each.route == "strong" for each in decided if each.arm == arm]
            assert sum(mine) / len(mine) == pytest.approx(target, abs=0.03)
        assert router._arms is not None
        assert router._arms.canary is not None
        main, canary = main_router(router).budgets, router._arms.canary.router.budgets
        assert main is not None
        assert canary is not None
        before = (main.budget(0.5).surplus, canary.budget(0.2).surplus)
        await router.decide_all([], [Spent(0.2, "strong", "weak", "canary")])
        assert (main.budget(0.5).surplus, canary.budget(0.2).surplus) == (before[0], before[1] + 1)

    asyncio.run(test())


def test_promoted_it_decides_everything_as_it_is_loaded_and_rolled_back_the_old_one_goes_on() -> None:
    async def test() -> None:
        router = await with_canary(share=0.5, router="hard_block")
        main = main_router(router)
        assert router._arms is not None
        assert router._arms.canary is not None
        canary = router._arms.canary.router
        await router.reconfigure(user_config("hard_block"))
        assert main_router(router) is canary
        assert {each.router for each in await decisions(router, TEXTS[:50])} == {"two"}
        assert router.num_loaded == 2

        router = await with_canary(share=0.5, router="hard_block")
        main = main_router(router)
        await router.reconfigure(user_config())
        assert main_router(router) is main
        assert {(each.router, each.arm) for each in await decisions(router, TEXTS[:50])} == {("one", "main")}

    asyncio.run(test())


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        ({"share": 0.5, "router": "missing"}, "there is no missing"),
        ({"share": 0.5, "router": "hard_block", "version": "three"}, "version two, not three"),
        ({"share": 1.5}, "canary.share"),
        ({"share": 0.5, "strong_fraction": 7}, "canary.strong_fraction"),
        ({"router": "hard_block"}, "canary.share"),
    ],
)
def test_a_broken_canary_changes_nothing(canary: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        router = await replica(None, strong_fraction=0.5)
        await router.reconfigure({**user_config(strong_fraction=0.1), "canary": canary})
        decided = await decisions(router, TEXTS[:50])
        assert {(each.router, each.arm, each.strong_fraction) for each in decided} == {("one", "main", 0.5)}
        assert why in caplog.text

    asyncio.run(test())
