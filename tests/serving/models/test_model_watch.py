"""The watch over a deployment's replicas, against a handle that answers as a test says."""

import asyncio
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.models import watch as model_watch
from serve_app.models.watch import ModelWatch

STALL_S = 60.0
NONE_LEFT = DeploymentUnavailableError(DeploymentID("weak", "firewall"))


class FakeHandle:
    """outcome: what the replicas say, one each, or what the call raises."""

    def __init__(self, outcome: list[Any] | Exception) -> None:
        self.outcome = outcome
        self.num_looks = 0

    def broadcast(self, method: str) -> "FakeHandle":
        assert method == "check_health"
        self.num_looks += 1
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s > 0
        assert return_exceptions
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_watch, "PERIOD_S", 0.001)


async def wait_for_ever(watch: ModelWatch, timeout_s: float = 3_600) -> None:
    async with asyncio.timeout(timeout_s) as deadline:
        with watch.waiting(deadline):
            await asyncio.Event().wait()


@pytest.mark.parametrize("outcome", [NONE_LEFT, [RuntimeError("died")], [RuntimeError("died"), RuntimeError("died too")]])
def test_whoever_waits_for_a_dead_model_waits_no_longer(outcome: Any) -> None:
    async def scenario() -> ModelWatch:
        watch = ModelWatch("weak", FakeHandle(outcome), STALL_S)
        waiters = await asyncio.gather(*(wait_for_ever(watch) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in waiters] == [TimeoutError] * 3
        return watch

    assert asyncio.run(scenario()).is_dead


@pytest.mark.parametrize("outcome", [[None], [None, RuntimeError("died")], TimeoutError()])
def test_one_replica_that_is_well_or_slow_is_worth_waiting_for(outcome: Any) -> None:
    async def scenario() -> FakeHandle:
        handle = FakeHandle(outcome)
        watch = ModelWatch("weak", handle, STALL_S)
        waiter = asyncio.create_task(wait_for_ever(watch))
        while handle.num_looks < 3:
            await asyncio.sleep(0.001)
        assert not waiter.done()
        assert not watch.is_dead
        waiter.cancel()
        return handle

    asyncio.run(scenario())


def test_replicas_that_never_say_whether_they_are_well_are_dead_in_the_end() -> None:
    async def scenario() -> None:
        handle = FakeHandle(TimeoutError())
        watch = ModelWatch("weak", handle, stall_s=0.05)
        with pytest.raises(TimeoutError):
            await wait_for_ever(watch)
        assert watch.is_dead
        handle.outcome = [None]
        while watch.is_dead:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_model_that_came_back_is_found_alive_though_nobody_waits() -> None:
    async def scenario() -> None:
        handle = FakeHandle(NONE_LEFT)
        watch = ModelWatch("weak", handle, STALL_S)
        with pytest.raises(TimeoutError):
            await wait_for_ever(watch)
        handle.outcome = [None]
        while watch.is_dead:
            await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_a_model_that_nobody_asks_is_left_alone() -> None:
    async def scenario() -> None:
        handle = FakeHandle([None])
        watch = ModelWatch("weak", handle, STALL_S)
        with pytest.raises(TimeoutError):
            await wait_for_ever(watch, 0.05)
        seen = handle.num_looks
        assert seen > 0
        await asyncio.sleep(0.05)
        assert handle.num_looks <= seen + 1  # one may have been under way

    asyncio.run(scenario())


def test_a_check_says_what_is_wrong() -> None:
    async def check(outcome: Any) -> None:
        await ModelWatch("weak", FakeHandle(outcome), STALL_S).check()

    asyncio.run(check([None, RuntimeError("died")]))
    with pytest.raises(DeploymentUnavailableError):
        asyncio.run(check(NONE_LEFT))
    with pytest.raises(RuntimeError, match="died"):
        asyncio.run(check([RuntimeError("died")]))
