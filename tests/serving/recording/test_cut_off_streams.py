"""What a stream used that nobody saw to its end: counted as it was sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_fakes import FakeModel, FakeRouter, Fakes
from pydantic_core import to_json
from test_gateway_failures import Caller

from serve_app.models.answers import Answer, Usage
from serve_app.models.event_stream import DONE, num_tokens_in


def event(**delta: Any) -> bytes:
    return b"data: " + to_json({"model": "large", "choices": [{"index": 0, "delta": delta}]}) + b"\n\n"


SPEAKER = event(role="assistant", content="")


@pytest.mark.parametrize(
    ("chunk", "num"),
    [
        (b"", 0),
        (SPEAKER, 0),
        (SPEAKER + SPEAKER + event(content="a"), 1),  # of two answers
        (event(content="a") + event(content="b"), 2),
        (event(content="a") + DONE, 1),
        (event(role="assistant", content="a"), 1),  # as some servers say each time
        (event(content='\n\n"role":"assistant","content":""\n\ndata: [DONE]\n\n'), 1),  # a text is a text
    ],
)
def test_a_token_is_an_event_that_says_more_than_who_speaks(chunk: bytes, num: int) -> None:
    assert num_tokens_in(chunk) == num


class Chatty(FakeModel):
    """Says who speaks, then a word after the other, several to a chunk, without an end."""

    async def _chunks(self, answer: Answer, usage: Usage) -> AsyncIterator[bytes]:
        yield SPEAKER + event(content="one")
        while True:
            yield event(content="two") + event(content="three")


def test_a_client_that_leaves_pays_for_the_tokens_that_were_sent() -> None:
    """Messages: the response's start, one token, two, two."""
    served = Fakes(FakeRouter({"Prove it.": 0.0}), Chatty, prices={r: {"prompt": 0, "completion": 1e6} for r in ("weak", "strong")})
    asyncio.run(Caller(served, 4, leaves=True).call())
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.client_left) == (499, True)
    assert exchange.usage is not None
    assert exchange.usage.completion_tokens == 5
    assert exchange.cost_usd == 5.0
    assert exchange.usage.prompt_tokens > 0  # by the request's size
    assert served.counters.snapshot()["tokens"]["strong"]["completion"] == 5


def test_a_stream_that_breaks_has_what_was_sent_and_one_that_ends_what_its_server_counted() -> None:
    served = Fakes()
    served.weak.breaks_after = 2
    served.chat(stream=True)
    served.weak.breaks_after = None
    served.chat(stream=True)
    broken, whole = served.recorder.exchanges
    assert broken.usage is not None
    assert (broken.status, broken.usage.completion_tokens) == (502, 2)
    assert whole.usage == Usage(7, 3)


def test_the_rates_by_which_is_estimated_are_learned_without_prices_too() -> None:
    """Bytes of a request for a token of its prompt: all requests here have the same."""
    served = Fakes()
    for _ in range(100):
        served.chat(stream=True)
    served.weak.breaks_after = 1
    served.chat(stream=True)
    usage = served.recorder.exchanges[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 1)
