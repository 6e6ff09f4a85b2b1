"""A request under which an engine crashes costs that engine, not the other one, and not the same engine again and again."""

import asyncio
from typing import Any

import httpx
import openai
import pytest
from gateway_fakes import FakeRouter, Fakes

from serve_app.errors import RequestRefused
from serve_app.models.answers import EngineCrashed, ModelUnavailable
from serve_app.suspects import FORGET_AFTER_S, Suspects, text_key

HARD = "Prove it."


@pytest.fixture
def served() -> Fakes:
    """Its strong model crashes, and HARD goes there."""
    fakes = Fakes(FakeRouter({HARD: 0.0}))
    fakes.strong.why = "crashed"
    return fakes


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_whose_engine_crashed_is_a_502_and_never_tried_on_the_other_model(served: Fakes, streams: bool) -> None:
    response = served.chat(HARD, stream=streams)
    assert error_of(response) == (502, "model_crashed")
    assert response.headers["x-should-retry"] == "false"
    assert served.weak.bodies == []
    (exchange,) = served.recorder.exchanges
    assert (exchange.status, exchange.answered_by, exchange.fallback) == (502, None, "crashed")


def test_a_request_that_falls_back_onto_a_model_that_crashes_is_a_502_too(served: Fakes) -> None:
    served.weak.why, served.strong.why = "overloaded", "crashed"
    response = served.chat("easy")
    assert error_of(response) == (502, "model_crashed")
    assert "small (overloaded) nor large (crashed)" in response.json()["error"]["message"]


def test_the_next_try_waits_for_the_crashed_model_and_is_no_cause_for_the_other_one(served: Fakes) -> None:
    served.chat(HARD)
    served.strong.why = "dead"  # until Serve has another replica
    response = served.chat(HARD)
    assert error_of(response) == (503, "model_unavailable")
    assert served.chat("easy").status_code == 200
    assert len(served.weak.bodies) == 1
    served.strong.why = None
    assert served.chat(HARD).json()["model"] == "large"


def test_a_text_under_which_engines_crashed_twice_is_refused_whatever_else_it_asks_for(served: Fakes) -> None:
    served.chat(HARD)
    served.chat(HARD, temperature=0)
    served.strong.why = None
    for options in ({}, {"max_tokens": 1}, {"model": "large"}, {"model": "small"}, {"stream": True}):
        response = served.chat(HARD, **{"model": "firewall", **options})
        assert error_of(response) == (422, "model_crashed")
        assert "600 s" in response.json()["error"]["message"]
    assert len(served.strong.bodies) == 2
    assert served.weak.bodies == []
    assert served.chat(HARD + " Please.").status_code == 200


def test_a_suspect_is_not_let_at_the_other_model_by_name_either(served: Fakes) -> None:
    served.chat(HARD)
    assert error_of(served.chat(HARD, model="small")) == (422, "model_crashed")
    assert served.weak.bodies == []


def test_an_engine_that_crashes_in_the_middle_of_a_stream_makes_a_suspect(served: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks(answer: Any, usage: Any) -> Any:
        yield b'data: {"model":"large","choices":[]}\n\n'
        raise EngineCrashed

    served.strong.why = None
    monkeypatch.setattr(served.strong, "_chunks", chunks)
    for _ in range(2):
        assert '"code":"model_failed"' in served.chat(HARD, stream=True).text
    assert error_of(served.chat(HARD)) == (422, "model_crashed")


def test_the_official_client_does_not_send_a_killer_again(served: Fakes) -> None:
    async def ask() -> None:
        async with served.client() as http_client:
            client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", max_retries=2, http_client=http_client)
            await client.chat.completions.create(model="firewall", messages=[{"role": "user", "content": HARD}])

    with pytest.raises(openai.InternalServerError):
        asyncio.run(ask())
    assert len(served.strong.bodies) == 1


def test_nobody_is_a_suspect_for_ever() -> None:
    now = [0.0]
    suspects = Suspects(lambda: now[0])
    key = {"prompt": HARD}
    assert not suspects.is_suspect(key, "strong")
    suspects.crashed(key, "strong")
    assert suspects.is_suspect(key, "strong")
    now[0] = 60
    suspects.crashed(key, "strong")
    now[0] = 100.5
    with pytest.raises(RequestRefused, match=r"for 560 s"):  # 60 + 600 - 100.5, rounded up
        suspects.is_suspect(key, "strong")
    now[0] = 60 + FORGET_AFTER_S
    assert not suspects.is_suspect(key, "strong")


def test_a_key_is_of_what_the_model_reads() -> None:
    same = [{"prompt": "a"}, {"prompt": "a", "stream": True, "model": "x", "max_tokens": 2}]
    other = [{"prompt": "b"}, {"prompt": ["a"]}, {"messages": "a"}, {"prompt": [97]}]
    assert len({text_key(body) for body in same}) == 1
    assert len({text_key(body) for body in same + other}) == 1 + len(other)


def test_retry_after_is_what_the_model_that_is_back_first_says(served: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*args: Any, retry_after_s: float, **kwargs: Any) -> Any:
        raise ModelUnavailable("dead", retry_after_s)

    for model, seconds in ((served.weak, 12.2), (served.strong, 60.0)):
        monkeypatch.setattr(model, "ask", lambda *args, s=seconds, **kwargs: gone(retry_after_s=s))
    assert served.chat("easy").headers["retry-after"] == "13"
    assert served.chat(HARD, model="large").headers["retry-after"] == "60"
