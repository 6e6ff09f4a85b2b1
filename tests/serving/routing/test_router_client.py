"""The ingress' way to the router, over a handle that answers when the test says so."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.tasks.base import prompt_id
from serve_app.routing.client import LATE_S, MAX_CHARACTERS, MAX_TEXTS_A_CALL, MAX_WAIT, SMALL_CHARACTERS, DeployedRouter
from serve_app.routing.decision import Decision, DecisionRequest, Spent

request_of_client: contextvars.ContextVar[str] = contextvars.ContextVar("request_of_client", default="none")


class Response:
    """Of one call. Like Serve's, it is awaited, and cancelled."""

    def __init__(self, requests: list[DecisionRequest], spent: list[Spent]) -> None:
        self.requests, self.spent = requests, spent
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

    def remote(self, requests: list[DecisionRequest], spent: list[Spent]) -> Response:
        self.calls.append(Response(requests, spent))
        return self.calls[-1]

    def texts(self) -> list[list[str]]:
        return [[text for question in call.requests for text in question.texts] for call in self.calls]


def scenario(max_calls: int, run: Callable[[Handle, DeployedRouter], Awaitable[None]]) -> None:
    async def main() -> None:
        handle: Any = Handle()
        await asyncio.wait_for(run(handle, DeployedRouter(handle, max_calls)), 30)

    asyncio.run(main())


def ask(
    router: DeployedRouter, *texts: str, fraction: float | None = None, timeout_s: float = 10.0
) -> asyncio.Task[list[Decision]]:
    return asyncio.create_task(router.decide(list(texts), fraction, True, True, timeout_s=timeout_s))


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


@pytest.mark.parametrize("large", [["1", "2"], ["x" * (SMALL_CHARACTERS + 1)], ["x"] * 2_048])
def test_what_is_large_goes_alone_and_small_requests_do_not_wait_for_it(large: list[str]) -> None:
    """However many large ones there are: they wait for each other."""

    async def run(handle: Handle, router: DeployedRouter) -> None:
        tasks = [ask(router, *large) for _ in range(3)]
        await settled()
        assert handle.texts() == [large]
        small = [ask(router, text) for text in "ab"]
        await settled()
        assert handle.texts() == [large, ["a"]]
        handle.calls[1].finish()
        await settled()
        handle.calls[2].finish()
        assert [await each for each in small] == [[decision("a")], [decision("b")]]
        assert not any(task.done() for task in tasks)
        handle.calls[0].finish()
        await settled()
        assert handle.texts()[3] == large
        for task in tasks:
            task.cancel()

    scenario(1, run)


def test_a_call_is_for_no_more_than_the_router_has_shown_to_score_in_time() -> None:
    """Else all of its requests would time out together, when their router is slow."""

    async def run(handle: Handle, router: DeployedRouter) -> None:
        num_calls = 0

        async def answered_after(seconds: float) -> int:
            """How many texts the next call asks for, of more than enough that wait."""
            nonlocal num_calls
            await settled()
            await asyncio.sleep(seconds)
            num_texts = len(handle.texts()[num_calls])
            handle.calls[num_calls].finish()
            num_calls += 1
            return num_texts

        tasks = [ask(router, f"text {i}", timeout_s=0.4) for i in range(1_200)]
        assert await answered_after(0.001) == 1
        fast = [await answered_after(0.001) for _ in range(4)]
        assert max(fast) == MAX_TEXTS_A_CALL
        slow = [await answered_after(0.3) for _ in range(4)]
        assert slow[-1] < MAX_TEXTS_A_CALL / 2  # a quarter of the deadline is for about 20
        for task in tasks:
            task.cancel()

    scenario(1, run)


def test_no_more_of_a_text_leaves_the_ingress_than_routers_read_and_it_keeps_its_name() -> None:
    long, prompt = "Why? " * 300_000, "x" * MAX_CHARACTERS

    async def run(handle: Handle, router: DeployedRouter) -> None:
        task = ask(router, long, prompt)
        await settled()
        assert handle.texts() == [[long[:MAX_CHARACTERS], prompt]]
        handle.calls[0].finish()
        of_long, of_prompt = await task
        assert (of_long.truncated, of_long.query_id) == (True, prompt_id(PROMPT_TEMPLATE.format(question=long)))
        assert of_prompt == decision(prompt)

    scenario(1, run)


def test_the_deadline_begins_with_the_work_and_not_while_others_are_waited_for() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        first, second = ask(router, "a", timeout_s=0.2), ask(router, "b", timeout_s=0.2)
        await asyncio.sleep(0.15)
        handle.calls[0].finish()
        await asyncio.sleep(0.15)  # together more than the deadline
        handle.calls[1].finish()
        assert (await first, await second) == ([decision("a")], [decision("b")])

    scenario(1, run)


def test_a_router_that_hangs_costs_the_deadline_and_those_that_wait_for_it_a_few() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        began = time.monotonic()
        tasks = [ask(router, str(i), timeout_s=0.1) for i in range(200)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {TimeoutError}
        assert all(call.was_cancelled for call in handle.calls)
        assert time.monotonic() - began < 2 * (MAX_WAIT + 1) * (0.1 + LATE_S)

    scenario(1, run)


def test_what_was_spent_otherwise_is_said_with_the_next_call_once() -> None:
    async def run(handle: Handle, router: DeployedRouter) -> None:
        router.spent(0.3, "weak", "strong", "canary")
        router.spent(None, "strong", None, "main")
        for text in "ab":
            task = ask(router, text)
            await settled()
            handle.calls[-1].finish()
            await task
        assert [call.spent for call in handle.calls] == [[Spent(0.3, "weak", "strong", "canary"), Spent(None, "strong", None)], []]

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
