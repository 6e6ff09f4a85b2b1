"""A strong model that is bought: the gateway in front of a real HTTP server that behaves like OpenAI's, or badly."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from gateway_fakes import IDS, FakeModel, FakeRouter, Recorder
from openai_server import (
    MODEL,
    USAGE,
    WORDS,
    OpenAIServer,
    done_at_once,
    dripping,
    error_event_first,
    error_with_200,
    event,
    events,
    garbage,
    no_choices,
    no_events,
    number_first,
    openai_server,
    raw_json,
    refusal,
    slow,
    stream_of,
)
from starlette.responses import Response

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ConfigError
from serve_app.gateway import Gateway
from serve_app.http.ingress import asgi_app
from serve_app.models.answers import Answer, ModelUnavailable
from serve_app.models.breaker import NUM_FAILURES
from serve_app.models.remote import RemoteModel
from serve_app.recording.counters import LiveCounters

SECRET = "sk-not-for-others"


@pytest.fixture(scope="module")
def running_server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


@pytest.fixture
def server(running_server: OpenAIServer) -> OpenAIServer:
    """As OpenAI's: what the test before asked of it is forgotten."""
    running_server.answer, running_server.seen, running_server.num_left = None, [], 0
    return running_server


def remote(url: str, *, max_concurrency: int = 8, api_key_env: str | None = None, **serving: Any) -> RemoteModel:
    config = OpenAIModelConfig(engine="openai", base_url=url, model=MODEL, max_concurrency=max_concurrency, api_key_env=api_key_env)
    return RemoteModel(IDS["strong"], config, ServingConfig(api_keys="disabled", **serving))


class Front:
    """The gateway with the remote model as its strong one and a fake as its weak one, and the official client of it."""

    def __init__(self, model: RemoteModel, **serving: Any) -> None:
        self.weak, self.recorder = FakeModel(IDS["weak"]), Recorder()
        config = ServingConfig(api_keys="disabled", allowed_hosts=["gateway"], **serving)
        gateway = Gateway(FakeRouter(default_fraction=1), {"weak": self.weak, "strong": model}, IDS, config, [self.recorder])
        app = asgi_app(gateway, config, LiveCounters(), lambda status: None)
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        self.client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=self._http)

    async def chat(self, **options: Any) -> httpx.Response:
        body = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}], **options}
        return await self._http.post("/v1/chat/completions", json=body)


def run(server_url: str, ask: Callable[[Front], Awaitable[Any]], **options: Any) -> tuple[Any, Front]:
    """`ask` of a gateway whose remote model lies at this URL."""
    serving = {name: options.pop(name) for name in ("fallback",) if name in options}

    async def inside() -> tuple[Any, Front]:
        front = Front(remote(server_url, **options), **serving)
        return await ask(front), front

    return asyncio.run(inside())


# What it sends -------------------------------------------------------------------------------------------------------


def test_the_server_gets_its_key_its_model_id_and_the_rest_as_it_was(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONG_KEY", SECRET)
    said = {"tools": [{"type": "function"}], "seed": 2**63, "top_p": 0.1, "stop": None, "not_known_yet": {"ä": ["\u2028"]}}
    response, _ = run(server.url, lambda front: front.chat(**said), api_key_env="STRONG_KEY")
    assert response.status_code == 200
    ((path, headers, body),) = server.seen
    assert (path, headers["authorization"], headers["content-type"]) == (
        "/v1/chat/completions",
        f"Bearer {SECRET}",
        "application/json",
    )
    assert body == {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], **said}
    assert SECRET not in response.text + str(response.headers)


def test_no_key_is_sent_where_none_is_configured_and_never_the_callers(server: OpenAIServer) -> None:
    run(server.url, lambda front: front.client.completions.create(model="firewall", prompt="Why?"))
    ((path, headers, _),) = server.seen
    assert (path, headers.get("authorization")) == ("/v1/completions", None)


def test_a_key_that_is_not_set_is_a_config_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRONG_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"models\.large\.api_key_env.*STRONG_KEY"):
        remote("http://localhost:1/v1", api_key_env="STRONG_KEY")
    monkeypatch.setenv("STRONG_KEY", "k k\n")
    with pytest.raises(ConfigError, match=r"STRONG_KEY has a blank"):
        remote("http://localhost:1/v1", api_key_env="STRONG_KEY")


# What comes back -----------------------------------------------------------------------------------------------------


def test_an_answer_is_the_servers_under_the_pairs_id(server: OpenAIServer) -> None:
    completion, front = run(
        server.url,
        lambda front: front.client.chat.completions.create(model="firewall", messages=[{"role": "user", "content": "a"}]),
    )
    assert (completion.model, completion.id) == ("large", "1")
    assert completion.choices[0].message.content == "".join(WORDS)
    assert completion.usage.model_dump(exclude_none=True) == USAGE
    (exchange,) = front.recorder.exchanges
    assert exchange.usage is not None
    assert (exchange.answered_by, exchange.usage.prompt_tokens, exchange.usage.completion_tokens) == ("strong", 5, 3)


@pytest.mark.parametrize("wanted", [None, {"include_usage": True}, {"include_usage": False}, {}])
def test_a_stream_ends_in_its_usage_only_for_who_asked_but_is_always_counted(server: OpenAIServer, wanted: Any) -> None:
    async def ask(front: Front) -> list[Any]:
        messages = [{"role": "user", "content": "a"}]
        stream = await front.client.chat.completions.create(
            model="firewall",
            messages=messages,  # type: ignore[arg-type]
            stream=True,
            stream_options=wanted,
        )
        return [chunk async for chunk in stream]

    chunks, front = run(server.url, ask)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert {chunk.model for chunk in chunks} == {"large"}
    asked = bool(wanted and wanted.get("include_usage"))
    assert [chunk.usage.total_tokens for chunk in chunks if not chunk.choices] == ([8] if asked else [])
    (exchange,) = front.recorder.exchanges
    assert exchange.usage is not None
    assert (exchange.status, exchange.usage.completion_tokens) == (200, 3)


def test_a_stream_ends_as_openais_do(server: OpenAIServer) -> None:
    response, _ = run(server.url, lambda front: front.chat(stream=True))
    lines = response.content.split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    assert all(line.startswith(b"data: ") for line in lines[:-1])


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_client_did_wrong_it_is_told_in_the_servers_words(server: OpenAIServer, status: int, streams: bool) -> None:
    async def refuse(body: Any) -> Response:
        return refusal(status, "max_tokens is too large")

    server.answer = refuse
    response, front = run(server.url, lambda front: front.chat(stream=streams))
    assert response.status_code == status
    assert response.json()["error"] == {"message": "max_tokens is too large", "type": "x", "param": "p", "code": "c"}
    assert front.weak.bodies == []


@pytest.mark.parametrize("body", [b"<html>no</html>", b"[]", b'{"detail": "no"}', b'{"error": "no"}', b"\xff", b""])
def test_a_refusal_in_another_shape_is_put_into_openais(server: OpenAIServer, body: bytes) -> None:
    async def refuse(_: Any) -> Response:
        return Response(body, 400)

    server.answer = refuse
    response, _ = run(server.url, lambda front: front.chat())
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_stream_options_that_are_no_object_are_the_servers_to_refuse(server: OpenAIServer) -> None:
    async def refuse(body: Any) -> Response:
        return refusal(400, str(body["stream_options"]))

    server.answer = refuse
    response, _ = run(server.url, lambda front: front.chat(stream=True, stream_options="usage"))
    assert (response.status_code, response.json()["error"]["message"]) == (400, "usage")


# When it gives no answer: the other model does -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "streams", "why"),
    [
        *(
            (status, streams, why)
            for streams in (False, True)
            for status, why in [
                *((status, "failed") for status in (301, 401, 402, 403, 404, 500, 502)),
                *((status, "overloaded") for status in (429, 503, 529)),
            ]
        ),
        (garbage, False, "failed"),
        (no_choices, False, "failed"),
        (error_with_200, False, "failed"),
        (garbage, True, "failed"),
        (error_event_first, True, "failed"),
        (number_first, True, "failed"),
        (no_events, True, "failed"),
        (done_at_once, True, "failed"),
        (slow, False, "timeout"),
        (slow, True, "timeout"),
        (dripping, False, "timeout"),
        (dripping, True, "timeout"),
    ],
)
def test_a_server_that_gives_no_answer_is_stood_in_for(server: OpenAIServer, answer: Any, streams: bool, why: str) -> None:
    async def with_status(body: Any) -> Response:
        return refusal(answer, f"about the account {SECRET}")

    server.answer = with_status if isinstance(answer, int) else answer
    timeout_s = 0.3 if why == "timeout" else 60
    response, front = run(
        server.url, lambda front: front.chat(stream=streams), first_token_timeout_s=timeout_s, answer_timeout_s=timeout_s
    )
    assert (response.status_code, response.headers["x-firewall-fallback"]) == (200, why)
    assert '"model":"small"' in response.text
    assert SECRET not in response.text
    assert len(server.seen) == 1
    assert [exchange.answered_by for exchange in front.recorder.exchanges] == ["weak"]


def test_without_fallback_what_is_between_us_and_the_server_is_no_fault_of_the_client(server: OpenAIServer) -> None:
    async def refuse(body: Any) -> Response:
        return refusal(401, f"Incorrect API key provided: {SECRET}")

    server.answer = refuse
    response, _ = run(server.url, lambda front: front.chat(), fallback=False)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
    assert SECRET not in response.text


def test_where_nobody_listens_the_model_is_dead() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        response, _ = run(f"http://127.0.0.1:{port}/v1", lambda front: front.chat())
    assert response.headers["x-firewall-fallback"] == "dead"


def test_ready_asks_the_server_for_its_models(server: OpenAIServer) -> None:
    asyncio.run(remote(server.url).check())
    with pytest.raises(httpx.HTTPError):
        asyncio.run(remote(f"{server.url}/nowhere").check())


# In the middle of a stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", [b"", b"data: {not JSON\n\n", b'data: {"error": {"message": "quota of ACME Inc."}}\n\n', b"data: 5\n\n"]
)
def test_a_stream_that_breaks_is_an_error_of_the_client_library_and_no_end(server: OpenAIServer, ending: bytes) -> None:
    """Cut off without its [DONE], or followed by what is no part of an answer."""

    async def broken(body: Any) -> Response:
        return events(stream_of(event(choices=[{"index": 0, "delta": {"content": "one"}}]), ending))

    async def ask(front: Front) -> None:
        async for _ in await front.client.completions.create(model="firewall", prompt="Why?", stream=True):
            pass

    server.answer = broken
    with pytest.raises(openai.APIError, match="failed in the middle") as raised:
        run(server.url, ask)
    assert "ACME" not in str(raised.value.body)


def test_a_stream_that_falls_silent_is_given_up(server: OpenAIServer) -> None:
    async def silent(body: Any) -> Response:
        return events(server.chunks(body, num_words=2, hangs=True))

    server.answer = silent
    response, front = run(server.url, lambda front: front.chat(stream=True), token_timeout_s=0.5)
    assert response.text.count('"model":"large"') == 2
    assert '"code":"model_failed"' in response.text
    assert [exchange.status for exchange in front.recorder.exchanges] == [502]


@pytest.mark.parametrize("finished", [False, True])
def test_a_stream_that_just_ends_is_whole_when_its_choices_are(server: OpenAIServer, finished: bool) -> None:
    """Some servers leave [DONE] out."""

    async def closing(body: Any) -> Response:
        first = event(choices=[{"index": 0, "delta": {"content": "one"}, "finish_reason": "stop"}])
        second = {"index": 1, "delta": {"content": "two"}, "finish_reason": "length" if finished else None}
        return events(stream_of(b"data:\n\n", first, b'event: ping\ndata: {"type": "ping"}\n\n', event(choices=[second])))

    server.answer = closing
    response, front = run(server.url, lambda front: front.chat(stream=True))
    assert response.text.endswith("data: [DONE]\n\n") == finished
    assert [exchange.status for exchange in front.recorder.exchanges] == [200 if finished else 502]


FAILED_CHOICE = {"index": 0, "delta": {"content": ""}, "message": {"content": ""}}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [
        {"error": {"message": "quota of ACME Inc.", "code": 502}, "choices": [FAILED_CHOICE]},
        {"choices": [{**FAILED_CHOICE, "error": {"message": "quota of ACME Inc."}, "finish_reason": "error"}]},
        {"choices": {"message": "quota of ACME Inc."}},
    ],
)
def test_an_error_beside_choices_is_an_error(server: OpenAIServer, wrong: dict[str, Any], streams: bool) -> None:
    async def answer(body: Any) -> Response:
        return events(stream_of(event(**wrong), b"data: [DONE]\n\n")) if streams else raw_json(wrong)

    server.answer = answer
    response, _ = run(server.url, lambda front: front.chat(stream=streams))
    assert response.headers["x-firewall-fallback"] == "failed"
    assert "ACME" not in response.text


def test_an_error_beside_choices_after_the_first_byte_is_our_error_event(server: OpenAIServer) -> None:
    async def answer(body: Any) -> Response:
        wrong = event(choices=[FAILED_CHOICE], error={"message": "quota of ACME Inc."})
        return events(stream_of(event(choices=[{"index": 0, "delta": {"content": "one"}}]), wrong, b"data: [DONE]\n\n"))

    server.answer = answer
    response, front = run(server.url, lambda front: front.chat(stream=True))
    assert '"code":"model_failed"' in response.text
    assert "ACME" not in response.text
    assert [exchange.status for exchange in front.recorder.exchanges] == [502]


def test_stream_options_that_the_client_never_sent_are_left_out_where_the_server_does_not_know_them(server: OpenAIServer) -> None:
    async def strict(body: Any) -> Response:
        if "stream_options" in body:
            return refusal(400, "Unknown parameter: 'stream_options'.")
        return events(server.chunks(body))

    async def ask(front: Front) -> list[httpx.Response]:
        theirs = {"stream": True, "stream_options": {"include_usage": True}}
        return [await front.chat(stream=True), await front.chat(stream=True), await front.chat(**theirs)]

    server.answer = strict
    (first, second, theirs), _ = run(server.url, ask)
    assert [first.status_code, second.status_code, theirs.status_code] == [200, 200, 400]
    assert "stream_options" in theirs.json()["error"]["message"]
    assert ["stream_options" in body for _, _, body in server.seen] == [True, False, False, True]


def test_continuous_usage_without_usage_is_not_asked_for(server: OpenAIServer) -> None:
    run(server.url, lambda front: front.chat(stream=True, stream_options={"continuous_usage_stats": True}))
    ((_, _, body),) = server.seen
    assert body["stream_options"] == {"include_usage": True}


def test_a_server_that_is_down_is_soon_left_alone(server: OpenAIServer) -> None:
    async def broken(body: Any) -> Response:
        return refusal(500)

    async def ask(front: Front) -> list[str]:
        return [(await front.chat()).headers["x-firewall-fallback"] for _ in range(NUM_FAILURES + 3)]

    server.answer = broken
    whys, _ = run(server.url, ask)
    assert whys == ["failed"] * NUM_FAILURES + ["dead"] * 3
    assert len(server.seen) == NUM_FAILURES


def test_retry_after_is_what_the_server_says(server: OpenAIServer) -> None:
    async def busy(body: Any) -> Response:
        return Response(b"{}", 429, {"retry-after": "17"})

    server.answer = busy
    response, _ = run(server.url, lambda front: front.chat(), fallback=False)
    assert (response.status_code, response.headers["retry-after"]) == (503, "17")


# Slots ---------------------------------------------------------------------------------------------------------------

BODY = b'{"model": "firewall", "messages": []}'
STREAM = b'{"model": "firewall", "messages": [], "stream": true}'


def test_every_way_a_stream_can_end_frees_its_slot_and_the_server(server: OpenAIServer) -> None:
    async def hanging(body: Any) -> Response:
        return events(server.chunks(body, num_words=1, hangs=True))

    async def inside() -> None:
        model = remote(server.url, max_concurrency=1)

        async def begin() -> Answer:
            return await model.ask("chat", STREAM, streams=True)

        answer = await begin()  # read to its end
        assert [chunk async for chunk in answer.body][-1] == b"data: [DONE]\n\n"  # type: ignore[union-attr]
        assert answer.release is not None
        await answer.release()

        server.answer = hanging
        for num_read in (0, 1):  # left before its first chunk, and after it
            answer = await begin()
            with pytest.raises(ModelUnavailable, match="overloaded"):
                await begin()
            for _ in range(num_read):
                await anext(answer.body)  # type: ignore[arg-type]
            assert answer.release is not None
            await answer.release()
        server.answer = slow  # left while nothing has come yet
        for streams in (True, False):
            num_seen = len(server.seen)
            waiting = asyncio.ensure_future(model.ask("chat", BODY, streams=streams))
            while len(server.seen) == num_seen:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        server.answer = None
        assert (await model.ask("chat", BODY, streams=False)).status == 200
        while server.num_left < 2:  # the server noticed both streams that were left
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(inside(), 60))


def test_a_failure_frees_its_slot(server: OpenAIServer) -> None:
    async def inside() -> None:
        model = remote(server.url, max_concurrency=1)
        for answer, streams in [(garbage, False), (garbage, True), (error_event_first, True)]:
            server.answer = answer
            with pytest.raises(ModelUnavailable, match="failed"):
                await model.ask("chat", BODY, streams=streams)
        server.answer = None
        assert (await model.ask("chat", BODY, streams=False)).status == 200

    asyncio.run(inside())
