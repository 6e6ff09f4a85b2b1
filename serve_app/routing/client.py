"""How the ingress reaches the router: what is asked while a call is under way goes together in the next. Runs on ingress replicas.

A call between two replicas costs more CPU than what it asks for. An idle router is called at once; a busy one is called less
often, for more requests at a time. docs/serving.md says what that gained.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

from ray.serve.handle import DeploymentHandle

from serve_app.routing.decision import Decision, DecisionRequest

MAX_TEXTS_A_CALL = 64  # a request of more goes alone, so that small ones need not wait for its end


Waiting = tuple[DecisionRequest, asyncio.Future[list[Decision]]]


class RouterClient(Protocol):
    """The router as the gateway sees it."""

    def decide(
        self, texts: list[str], strong_fraction: float | None, are_questions: bool, counts: bool = False
    ) -> Awaitable[list[Decision]]:
        """One decision a text, at `strong_fraction` or, when None, at the default in force. counts: as one request, answered
        by a model, that the budget control is to know of.
        """
        ...


class DeployedRouter:
    """The router deployment, called. max_calls: under way at a time; one more than there are replicas keeps all busy."""

    def __init__(self, handle: DeploymentHandle, max_calls: int) -> None:
        self._decide_all = handle.decide_all
        self._max_calls = max_calls
        self._waiting: deque[Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def decide(
        self, texts: list[str], strong_fraction: float | None, are_questions: bool, counts: bool = False
    ) -> list[Decision]:
        """As the protocol says."""
        answer: asyncio.Future[list[Decision]] = asyncio.get_running_loop().create_future()
        self._waiting.append((DecisionRequest(texts, strong_fraction, are_questions, counts), answer))
        self._call()
        return await answer

    def _call(self) -> None:
        """Ask for those who wait, as long as a call more is allowed."""
        while len(self._calls) < self._max_calls and (asked := self._next()):
            asking = self._ask([request for request, _ in asked], [answer for _, answer in asked])
            # Outside of the request that happens to be here: when its client leaves, Serve cancels the calls made in it.
            call = asyncio.create_task(asking, context=contextvars.Context())
            self._calls.add(call)
            call.add_done_callback(self._called)

    def _next(self) -> list[Waiting]:
        """Those whom the next call asks for; whoever gave up meanwhile is left out."""
        asked: list[Waiting] = []
        num_texts = 0
        while self._waiting:
            request, answer = self._waiting[0]
            if not answer.done():  # else it timed out or its client left while it waited
                num_texts += len(request.texts)
                # The first one goes, whatever its size: nothing may wait for ever.
                if asked and num_texts > MAX_TEXTS_A_CALL:
                    break
                asked.append((request, answer))
            self._waiting.popleft()
        return asked

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._call()

    async def _ask(self, requests: list[DecisionRequest], answers: list[asyncio.Future[list[Decision]]]) -> None:
        """One call. Cancelled when nobody waits for it any more, so that a router that is late neither works for nobody nor
        keeps others waiting.
        """
        response: Any = self._decide_all.remote(requests)
        this = asyncio.current_task()
        assert this is not None
        remaining = len(answers)

        def gone(answer: asyncio.Future[list[Decision]]) -> None:
            nonlocal remaining
            remaining -= 1
            if answer.cancelled() and remaining == 0:
                response.cancel()
                this.cancel()  # the above is a request that a replica which hangs does not hear

        for answer in answers:
            answer.add_done_callback(gone)
        results: list[list[Decision] | Exception]
        try:
            results = await response
        except asyncio.CancelledError:
            return
        except Exception as e:
            results = [e] * len(answers)
        for answer, result in zip(answers, results, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
