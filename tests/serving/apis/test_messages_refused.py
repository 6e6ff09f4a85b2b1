"""What Anthropic's client makes of refusals and failures: each in the shape of its API, whoever refuses."""

import asyncio
from typing import Any

import anthropic
import openai
import pytest
from callers import ALICE, KEYS, bearer, get
from chat_fakes import ChatFakes, events_of
from test_messages import body, client, post
from wire import on_the_wire


async def refused(port: int, key: str = ALICE, **options: Any) -> tuple[type, int, dict[str, Any]]:
    """The client's exception, its status and the error itself."""
    async with client(port, key) as asked:
        with pytest.raises(anthropic.APIStatusError) as e:
            await asked.messages.create(**body(**options))
    assert isinstance(e.value.body, dict)
    assert e.value.body.keys() == {"type", "error"}
    assert e.value.body["type"] == "error"
    assert e.value.body["error"].keys() == {"type", "message"}
    return type(e.value), e.value.status_code, e.value.body["error"]


def test_refusals_are_the_clients_own_exceptions() -> None:
    fakes = ChatFakes(api_keys=KEYS, max_body_mib=0.01)

    async def check(port: int) -> None:
        kind, status, error = await refused(port, "fw-wrong")
        assert (kind, status, error["type"]) == (anthropic.AuthenticationError, 401, "authentication_error")
        assert "x-api-key" in error["message"]
        kind, status, error = await refused(port, model="claude")
        assert (kind, status, error["type"]) == (anthropic.NotFoundError, 404, "not_found_error")
        assert "firewall, " in error["message"]
        kind, status, error = await refused(port, system="x" * 20_000)
        assert (kind, status, error["type"]) == (anthropic.RequestTooLargeError, 413, "request_too_large")
        fakes.weak.refusal = (400, "The prompt is too long.")
        kind, status, error = await refused(port)
        assert (kind, status) == (anthropic.BadRequestError, 400)
        assert error == {"type": "invalid_request_error", "message": "The prompt is too long."}
        # Also where a stream was asked for.
        assert await refused(port, stream=True) == (kind, status, error)
        fakes.weak.refusal = None
        fakes.weak.why = fakes.strong.why = "dead"
        _, status, error = await refused(port)
        assert (status, error["type"]) == (503, "overloaded_error")
        fakes.weak.why = fakes.strong.why = "timeout"
        _, status, error = await refused(port)
        assert (status, error["type"]) == (504, "timeout_error")

    on_the_wire(fakes, check)
    assert fakes.refused == [401, 413]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": ALICE}, 200),
        ({"X-Api-Key": ALICE}, 200),
        (bearer(ALICE), 200),
        ({}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "fw-wrong"}, 401),
        ({"x-api-key": f"Bearer {ALICE}"}, 401),
        ({"x-api-key": ALICE, **bearer(ALICE)}, 401),  # whoever stands before this server may have read the other one
        ({"x-api-key": ALICE, **bearer("fw-wrong")}, 401),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_the_key_may_come_in_either_header(headers: dict[str, str], status: int, path: str) -> None:
    fakes = ChatFakes(api_keys=KEYS)
    asked = {"/v1/responses": {"model": "firewall", "input": "Why?"}}.get(path, body())
    response = fakes.post(path, asked, headers)
    assert response.status_code == status
    if status == 200:
        assert [each.key_name for each in fakes.recorder.exchanges] == ["alice"]
    else:
        assert ("type" in response.json()) == (path == "/v1/messages")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", 404, "not_found_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
    ],
)
def test_what_there_is_not_is_said_in_the_same_shape(method: str, path: str, status: int, kind: str) -> None:
    response = get(ChatFakes(), path, method)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert path in response.json()["error"]["message"]
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("path", ["/v1/messagesx", "/v1/chat/completionsx"])
def test_other_endpoints_keep_openais_shape(path: str) -> None:
    assert get(ChatFakes(), path).json().keys() == {"error"}


def test_what_nobody_expected_is_in_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = ChatFakes()

    async def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(fakes.weak, "ask", fails)
    response = post(fakes, body())
    assert (response.status_code, response.json()["error"]["type"]) == (500, "api_error")
    assert "canary" not in response.text


def test_what_is_no_answer_is_the_models_fault() -> None:
    fakes = ChatFakes()
    for raw in (b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"<html>"):
        fakes.weak.raw = raw
        response = post(fakes, body())
        assert (response.status_code, response.json()["error"]["type"]) == (502, "api_error")


@pytest.mark.parametrize("broken", [{"breaks_after": 2}, {"raw": b"data: {}\n\n"}, {"raw": b"data: {\n\n"}], ids=str)
def test_a_failure_in_the_middle_of_a_stream_is_raised_by_the_client(broken: dict[str, Any]) -> None:
    fakes = ChatFakes()
    vars(fakes.weak).update(broken)

    async def check(port: int) -> None:
        async with client(port) as asked:
            with pytest.raises(anthropic.APIStatusError) as e:
                async for _ in await asked.messages.create(**body(stream=True)):
                    pass
        assert e.value.body == {
            "type": "error",
            "error": {"type": "api_error", "message": "The model failed in the middle of its answer."},
        }

    on_the_wire(fakes, check)
    assert [each.status for each in fakes.recorder.exchanges] == [502]
    assert fakes.weak.num_open == 0
    assert events_of(post(fakes, body(stream=True)))[-1]["type"] == "error"


def test_the_plain_client_that_waits_works_too() -> None:
    """The one without asyncio."""
    fakes = ChatFakes(api_keys=KEYS)

    def ask(port: int) -> tuple[str, str]:
        with anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", auth_token=ALICE, api_key=None, max_retries=0) as asked:
            (block,) = asked.messages.create(**body()).content
            assert block.type == "text"
            with asked.messages.stream(**body()) as stream:
                return block.text, "".join(stream.text_stream)

    async def check(port: int) -> None:
        assert await asyncio.to_thread(ask, port) == ("all of it", "all of it")

    on_the_wire(fakes, check)


def test_openais_client_still_has_its_own_shape() -> None:
    async def check(port: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="fw-wrong", max_retries=0) as asked:
            with pytest.raises(openai.AuthenticationError) as e:
                await asked.responses.create(model="firewall", input="Why?")
            assert e.value.code == "invalid_api_key"

    on_the_wire(ChatFakes(api_keys=KEYS), check)
