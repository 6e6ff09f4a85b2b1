"""What becomes of a request when a model gives no answer, breaks in the middle of one, or the client leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import openai
import pytest
from gateway_fakes import FakeModel, FakeRouter, Fakes
from pydantic_core import to_json
from starlette.types import Message

from serve_app.models.answers import Unavailable

HARD = "Prove it."
# All but a crash, which is no cause to ask the other model: test_crashes.py.
CAUSES: tuple[Unavailable, ...] = tuple(why for why in get_args(Unavailable) if why != "crashed")


def fakes(weak: Unavailable | None = None, strong: Unavailable | None = None, **serving: Any) -> Fakes:
    """HARD goes strong. weak, strong: why that model gives no answer."""
    served = Fakes(FakeRouter({HARD: 0.0}), **serving)
    served.weak.why, served.strong.why = weak, strong
    return served


# Before the first byte -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("why", CAUSES)
def test_the_other_model_answers_for_one_that_gives_no_answer(why: Unavailable, streams: bool) -> None:
    served = fakes(strong=why)
    response = served.chat(HARD, stream=streams)
    assert response.status_code == 200
    assert '"model":"small"' in response.text
    assert "large" not in response.text
    headers = response.headers
    assert (headers["x-firewall-route"], headers["x-firewall-decided"], headers["x-firewall-fallback"]) == ("weak", "strong", why)
    assert headers["x-firewall-score"] == "0.0"
    assert served.weak.bodies == served.strong.bodies
    (exchange,) = served.recorder.exchanges
    assert (exchange.answered_by, exchange.fallback, exchange.status) == ("weak", why, 200)
    assert exchange.decision is not None
    assert exchange.decision.route == "strong"


def test_the_weak_model_is_helped_out_too() -> None:
    response = fakes(weak="overloaded").chat("easy")
    assert (response.json()["model"], response.headers["x-firewall-decided"]) == ("large", "weak")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("weak", CAUSES)
@pytest.mark.parametrize("strong", CAUSES)
def test_without_either_model_it_is_a_503_or_a_504_that_says_what_was_tried(weak: Any, strong: Any, streams: bool) -> None:
    served = fakes(weak, strong)
    response = served.chat(HARD, stream=streams)
    error = response.json()["error"]
    assert f"large ({strong}) nor small ({weak})" in error["message"]
    if weak == strong == "timeout":
        assert (response.status_code, error["code"]) == (504, "model_timeout")
    else:
        assert (response.status_code, error["code"]) == (503, "model_unavailable")
        assert int(response.headers["retry-after"]) > 0
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.answered_by, exchange.fallback) == (response.status_code, None, strong)


@pytest.mark.parametrize(("model", "serving"), [("large", {}), ("firewall", {"fallback": False})])
def test_nobody_steps_in_for_a_model_that_the_client_named_or_where_the_config_forbids_it(model: str, serving: Any) -> None:
    served = fakes(strong="dead", **serving)
    response = served.chat(HARD, model)
    assert (response.status_code, response.json()["error"]["message"]) == (503, "No answer from large (dead). Try again.")
    assert served.weak.bodies == []
    served.strong.why = "timeout"
    assert served.chat(HARD, model).status_code == 504


def test_after_a_router_that_failed_a_dead_fail_open_model_is_stood_in_for() -> None:
    served = fakes(weak="dead")
    served.router.error = RuntimeError()
    response = served.chat(HARD)
    assert (response.json()["model"], response.headers["x-firewall-reason"]) == ("large", "router-failed")
    assert response.headers["x-firewall-fallback"] == "dead"


# In the middle of a stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 2])
def test_a_stream_that_breaks_ends_in_an_error_and_never_in_another_models_words(words: int) -> None:
    served = fakes()
    served.strong.breaks_after = words
    response = served.chat(HARD, stream=True)
    events = response.text.strip().split("\n\n")
    assert len(events) == words + 1
    assert all('"model":"large"' in event for event in events[:-1])
    assert events[-1].startswith('data: {"error":{"message":"The model failed in the middle of its answer."')
    assert (served.weak.bodies, served.strong.num_open) == ([], 0)
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.answered_by, exchange.client_left) == (502, "strong", False)


def test_the_official_client_raises_on_a_stream_that_breaks() -> None:
    served = fakes()
    served.strong.breaks_after = 2

    words = []

    async def read() -> None:
        async with served.client() as http_client:
            client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", max_retries=0, http_client=http_client)
            stream = await client.completions.create(model="large", prompt=HARD, stream=True)
            async for chunk in stream:
                words.append(chunk.choices[0].text)  # noqa: PERF401 -- an extend that is broken off keeps nothing

    with pytest.raises(openai.APIError, match="failed in the middle") as broken:
        asyncio.run(read())
    assert broken.value.code == "model_failed"
    assert words == ["all", "of"]


# When the client leaves ----------------------------------------------------------------------------------------------


class Caller:
    """An ASGI client that takes `num_messages` messages of the response. Then it `leaves`, or is only silent."""

    def __init__(self, served: Fakes, num_messages: int, *, leaves: bool = False, **options: Any) -> None:
        body = {"model": "firewall", "messages": [{"role": "user", "content": HARD}], "stream": True, **options}
        self._served = served
        self._requests: list[Message] = [{"type": "http.request", "body": to_json(body), "more_body": False}]
        self._num_messages = num_messages
        self._leaves = leaves
        self._left = asyncio.Event()
        self.received: list[Message] = []

    async def call(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},  # what Ray Serve's proxy says
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [],
        }
        await self._served.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.received.append(message)
        if len(self.received) >= self._num_messages:
            if self._leaves:
                self._left.set()
            await asyncio.Event().wait()  # the connection takes no more


class EndlessModel(FakeModel):
    """Says one word and then nothing more, without an end."""

    async def _chunks(self, answer: Any, usage: Any) -> Any:
        yield b'data: {"model":"large","choices":[]}\n\n'
        await asyncio.Event().wait()


def assert_left(served: Fakes) -> None:
    assert (served.strong.num_open, served.weak.num_open, served.weak.bodies) == (0, 0, [])
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.client_left) == (499, True)
    assert exchange.total_s is not None


@pytest.mark.parametrize("num_messages", [1, 2, 3])
def test_a_client_that_leaves_a_stream_frees_the_model(num_messages: int) -> None:
    """Before the first event (1: the response's start), after it, and later."""
    served = fakes()
    asyncio.run(Caller(served, num_messages, leaves=True).call())
    assert_left(served)


def cancelled_after(call: Callable[[], Awaitable[None]], condition: Callable[[], bool]) -> None:
    """Run the call and cancel it, as Ray Serve does when a client leaves, once the condition holds."""

    async def run() -> None:
        task = asyncio.ensure_future(call())
        while not condition():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@pytest.mark.parametrize("num_messages", [1, 2])
def test_a_stream_that_ray_serve_cancels_frees_the_model(num_messages: int) -> None:
    served = fakes()
    caller = Caller(served, num_messages)
    cancelled_after(caller.call, lambda: len(caller.received) == num_messages)
    assert_left(served)


def test_a_client_that_leaves_a_model_that_has_nothing_more_to_say_frees_it() -> None:
    served = Fakes(FakeRouter({HARD: 0.0}), EndlessModel)
    caller = Caller(served, 99)
    cancelled_after(caller.call, lambda: len(caller.received) == 2)
    assert_left(served)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_before_the_first_byte_frees_the_model(streams: bool) -> None:
    served = fakes()
    served.strong.hangs = True
    cancelled_after(Caller(served, 99, stream=streams).call, lambda: served.strong.num_open == 1)
    assert_left(served)


def test_a_client_that_leaves_while_the_router_decides_is_recorded_and_no_model_asked() -> None:
    served = Fakes(FakeRouter(delay_s=60), router_timeout_s=60)
    cancelled_after(Caller(served, 99).call, lambda: len(served.router.calls) == 1)
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.client_left, exchange.decision) == (499, True, None)
    assert (served.weak.bodies, served.strong.bodies) == ([], [])
