"""The ingress' way to the router, over a handle that answers when the test says so."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from serve_app.routing.client import MAX_TEXTS_A_CALL, DeployedRouter
from serve_app.routing.decision import Decision, DecisionRequest

request_of_client: contextvars.ContextVar[str] = contextvars.ContextVar("request_of_client", default="none")


class Response:
    """Of one call. Like Serve's, it is awaited, and cancelled."""

    def __init__(self, requests: list[DecisionRequest]) -> None:
        self.requests = requests
        self.made_in = request_of_client.get()
        self.was_cancelled = False
        self._result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result.__await__()

    def cancel(self) -> None:
        """Is not heard: the replica hangs."""
        self.was_cancelled = True

    def finish(self, *failed: str) -> None:
        self._result.set_result(
            [ValueError(q.texts[0]) if q.texts[0] in failed else [decision(text) for text in q.texts] for q in self.requests]
        )

    def fail(self, error: Exception) -> None:
        self._result.set_exception(error)


def decision(text: str) -> Decision:
    return Decision("weak", "score", router=text)


class Handle:
    def __init__(self) -> None:
        self.calls: list[Response] = []
        self.decide_all = self

    def remote(self, requests: list[DecisionRequest]) -> Response:
        self.calls.append(Response(requests))
        return self.calls[-1]

    def texts(self) -> list[list[str]]:
        return [[text for question in call.requests for text in question.texts] for call in self.calls]


def scenario(max_calls: int, run: Callable[[Handle, DeployedRouter], Awaitable[None]]) -> None:
    async def main() -> None:
        handle: Any = Handle()
        await asyncio.wait_for(run(handle, DeployedRouter(handle, max_calls)), 30)

    asyncio.run(main())


def ask(router: DeployedRouter, *texts: str, fraction: float | None = None) -> asyncio.Task[list[Decision]]:
    return asyncio.create_task(router.decide(list(texts), fraction, True, True))


async def settled() -> None:
    """Whatever can happen has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def busy_with(handle: Handle, router: DeployedRouter, *texts: str) -> list[asyncio.Task[list[Decision]]]:
    """Requests that share the second call: the first has come and gone."""
    ask(router, "first")
    tasks = [ask(router, text) for text in texts]
    await settled()
    handle.calls[0].finish()
    await settled()
    assert handle.texts() == [["first"], list(texts)]
    return tasks


def test_an_idle_router_is_asked_at_once_and_a_busy_one_for_all_that_came_in_meanwhile() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        tasks = [ask(router, "a", fraction=0.25)]
        await settled()
        assert handle.calls[0].requests == [DecisionRequest(["a"], 0.25, True, True)]
        tasks += [ask(router, text) for text in "bcd"]
        await settled()
        assert handle.texts() == [["a"]]
        handle.calls[0].finish()
        await settled()
        assert handle.texts() == [["a"], ["b", "c", "d"]]
        handle.calls[1].finish()
        assert [await task for task in tasks] == [[decision(text)] for text in "abcd"]

    scenario(1, run)


def test_as_many_calls_are_under_way_as_keep_all_replicas_busy() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        tasks = []
        for text in "abcd":
            tasks.append(ask(router, text))
            await settled()
        assert handle.texts() == [["a"], ["b"], ["c"]]
        handle.calls[1].finish()  # in any order
        assert await tasks[1] == [decision("b")]
        await settled()
        assert handle.texts()[3] == ["d"]

    scenario(3, run)


def test_a_request_of_many_texts_goes_alone() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        many = [str(i) for i in range(MAX_TEXTS_A_CALL)]
        tasks = [ask(router, *texts) for texts in (["first"], ["a"], many, ["b"], ["c"])]
        await settled()
        for i in range(4):
            handle.calls[i].finish()
            await settled()
        assert handle.texts() == [["first"], ["a"], many, ["b", "c"]]
        assert [len(await task) for task in tasks] == [1, 1, MAX_TEXTS_A_CALL, 1, 1]

    scenario(1, run)


def test_a_request_that_fails_fails_alone_and_a_call_that_fails_fails_all_of_its_requests() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        tasks = await busy_with(handle, router, "a", "b", "c")
        handle.calls[1].finish("b")
        assert await tasks[0] == [decision("a")]
        with pytest.raises(ValueError, match="b"):
            await tasks[1]
        assert await tasks[2] == [decision("c")]

    scenario(1, run)

    async def run_dying(handle: Handle, router: DeployedRouter) -> None:
        tasks = await busy_with(handle, router, "d", "e")
        handle.calls[1].fail(RuntimeError("the replica died"))
        for task in tasks:
            with pytest.raises(RuntimeError, match="died"):
                await task
        after = ask(router, "f")
        await settled()
        handle.calls[2].finish()
        assert await after == [decision("f")]

    scenario(1, run_dying)


def test_a_call_is_given_up_when_nobody_waits_for_it_and_makes_room_though_the_replica_hangs() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        tasks = await busy_with(handle, router, "a", "b")
        later = [ask(router, text) for text in "cd"]
        await settled()
        tasks[0].cancel()
        later[0].cancel()
        await settled()
        assert not handle.calls[1].was_cancelled  # b still waits
        tasks[1].cancel()
        await settled()
        assert handle.calls[1].was_cancelled
        assert handle.texts()[2:] == [["d"]]  # c had left by then
        handle.calls[2].finish()
        assert await later[1] == [decision("d")]
        assert not handle.calls[2].was_cancelled

    scenario(1, run)


def test_a_shared_call_belongs_to_no_request_so_that_it_does_not_end_with_one() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        request_of_client.set("a's")
        tasks = await busy_with(handle, router, "a", "b")
        assert [call.made_in for call in handle.calls] == ["none", "none"]
        handle.calls[1].finish()
        await asyncio.gather(*tasks)

    scenario(1, run)
