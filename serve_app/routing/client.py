"""How the ingress reaches the router: what is asked while a call is under way goes together in the next. Runs on ingress replicas.

A call between two replicas costs more CPU than what it asks for. An idle router is called at once; a busy one is called less
often, for more requests at a time, as many as it has shown to score in a part of their deadline. Requests of several texts, or of a
long one, go alone and have a lane of their own, so that they hold up nobody. docs/serving.md says what that gained.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ray.serve.handle import DeploymentHandle

from firewall_ray.config.serving import Route
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.tasks.base import prompt_id
from serve_app.calls import cancel
from serve_app.routing.decision import Arm, Decision, DecisionRequest, Spent
from serve_app.routing.pace import Pace, cost
from serve_app.tracing import recorded_headers

MAX_CHARACTERS = 65_536  # of a text that leave the ingress: more than routers of 2,000 tokens read (`data.READ_PER_TOKEN`)
SMALL_CHARACTERS = 4_096  # of a text that shares a call
MAX_TEXTS_A_CALL = 64
SHARE_OF_DEADLINE = 0.25  # that a shared call may take by the pace so far: it may come to be four times slower
LATE_S = 0.05  # on busy cores this event loop is late itself: an answer that came in time may lie here and wait to be seen
MAX_WAIT = 4  # deadlines that a request waits for its turn; then there is more work than the router can do, and some must be let go


class Waiting(NamedTuple):
    request: DecisionRequest
    timeout_s: float
    answer: asyncio.Future[list[Decision]]


class RouterClient(Protocol):
    """The router as the gateway sees it."""

    def decide(
        self, texts: list[str], strong_fraction: float | None, are_questions: bool, counts: bool = False, *, timeout_s: float
    ) -> Awaitable[list[Decision]]:
        """One decision a text, at `strong_fraction` or, when None, at the default in force. counts: as one request, answered
        by a model, that the budget control is to know of. timeout_s: for the work; waiting for others' is not counted, as long as
        it is no more than four times that. Raises TimeoutError, and whatever befell the router.
        """
        ...

    def may_stand_in(self, decision: Decision, strong_fraction: float | None, timeout_s: float) -> Awaitable[bool]:
        """Whether the budget has room for the strong model to answer what was decided weak; if so, it counts as strong. Raises as
        `decide` does.
        """
        ...

    def spent(self, strong_fraction: float | None, answered: Route, decided: Route | None, arm: Arm) -> None:
        """To be told of a request that another model answered than counts, or none was counted for (decided: None)."""
        ...


class DeployedRouter:
    """The router deployment, called. max_calls: under way at a time; one more than there are replicas keeps all busy."""

    def __init__(self, handle: DeploymentHandle, max_calls: int) -> None:
        self._handle = handle
        # Read by both lanes, sent by the next call of either.
        self._spent: list[Spent] = []
        self._small = _Lane(handle, max_calls, MAX_TEXTS_A_CALL, self._spent)
        self._large = _Lane(handle, max_calls, 1, self._spent)

    async def decide(
        self, texts: list[str], strong_fraction: float | None, are_questions: bool, counts: bool = False, *, timeout_s: float
    ) -> list[Decision]:
        """As the protocol says."""
        cut = [text[:MAX_CHARACTERS] for text in texts]
        is_small = len(cut) == 1 and len(cut[0]) <= SMALL_CHARACTERS
        lane = self._small if is_small else self._large
        request = DecisionRequest(cut, strong_fraction, are_questions, counts, recorded_headers())
        async with asyncio.timeout(MAX_WAIT * timeout_s + timeout_s + LATE_S):
            decisions = await lane.ask(request, timeout_s)
        if is_small:
            return decisions
        return [
            decision if len(text) <= MAX_CHARACTERS else _of_whole(decision, text, are_questions)
            for decision, text in zip(decisions, texts, strict=True)
        ]

    async def may_stand_in(self, decision: Decision, strong_fraction: float | None, timeout_s: float) -> bool:
        """As the protocol says."""
        response: Any = self._handle.may_stand_in.remote(strong_fraction, decision.reason == "score", decision.arm)
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await response)
        except (TimeoutError, asyncio.CancelledError):
            cancel(response)
            raise

    def spent(self, strong_fraction: float | None, answered: Route, decided: Route | None, arm: Arm) -> None:
        """As the protocol says."""
        self._spent.append(Spent(strong_fraction, answered, decided, arm))


def _of_whole(decision: Decision, text: str, is_question: bool) -> Decision:
    """The router saw only the beginning of this text, and named that."""
    prompt = PROMPT_TEMPLATE.format(question=text) if is_question else text
    return replace(decision, truncated=True, query_id=prompt_id(prompt))


class _Lane:
    """Requests in the order in which they came, and the calls that ask for them."""

    def __init__(self, handle: DeploymentHandle, max_calls: int, max_requests: int, spent: list[Spent]) -> None:
        self._decide_all = handle.decide_all
        self._max_calls = max_calls
        self._max_requests = max_requests
        self._spent = spent
        self._pace = Pace()
        self._waiting: deque[Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, request: DecisionRequest, timeout_s: float) -> list[Decision]:
        answer: asyncio.Future[list[Decision]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(request, timeout_s, answer))
        self._call()
        return await answer

    def _call(self) -> None:
        """Ask for those who wait, as long as a call more is allowed."""
        while len(self._calls) < self._max_calls and (asked := self._next()):
            # Outside of the request that happens to be here: when its client leaves, Serve cancels the calls made in it.
            call = asyncio.create_task(self._ask(asked), context=contextvars.Context())
            self._calls.add(call)
            call.add_done_callback(self._called)

    def _next(self) -> list[Waiting]:
        """Those whom the next call asks for; whoever gave up meanwhile is left out."""
        asked: list[Waiting] = []
        room = 0.0
        while self._waiting and len(asked) < self._max_requests:
            first = self._waiting[0]
            if not first.answer.done():  # else it timed out or its client left while it waited
                its_cost = sum(map(cost, first.request.texts))
                if not asked:  # the first one goes, whatever its size: nothing may wait for ever
                    room = self._pace.within(SHARE_OF_DEADLINE * first.timeout_s)
                elif its_cost > room:
                    break
                room -= its_cost
                asked.append(first)
            self._waiting.popleft()
        return asked

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._call()

    async def _ask(self, asked: list[Waiting]) -> None:
        """One call. Cancelled when nobody waits for it any more, so that a router that is late neither works for nobody nor
        keeps others waiting.
        """
        spent = self._spent.copy()
        self._spent.clear()
        response: Any = self._decide_all.remote([each.request for each in asked], spent)
        this = asyncio.current_task()
        assert this is not None
        remaining = len(asked)

        def gone(answer: asyncio.Future[list[Decision]]) -> None:
            nonlocal remaining
            remaining -= 1
            if answer.cancelled() and remaining == 0:
                cancel(response)
                this.cancel()  # the above is a request that a replica which hangs does not hear

        for each in asked:
            each.answer.add_done_callback(gone)
        results: list[list[Decision] | Exception]
        began = time.perf_counter()
        answering = asyncio.ensure_future(response)
        try:
            # From here on: what the requests waited for before was others' work.
            for timeout_s in (max(each.timeout_s for each in asked), LATE_S):
                await asyncio.wait({answering}, timeout=timeout_s)
            if not answering.done():
                cancel(response)
                answering.cancel()
                raise TimeoutError("the router gave no answer in time")
            results = answering.result()
            total_cost = sum(cost(text) for each in asked for text in each.request.texts)
            self._pace.measured(total_cost, time.perf_counter() - began)
        except asyncio.CancelledError:
            answering.cancel()
            return
        except Exception as e:
            results = [e] * len(asked)
        for each, result in zip(asked, results, strict=True):
            if each.answer.done():
                continue
            if isinstance(result, Exception):
                each.answer.set_exception(result)
            else:
                each.answer.set_result(result)
