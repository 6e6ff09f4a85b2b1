"""The other APIs with models at a server elsewhere, over real HTTP: both are chats there."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from chat_fakes import EASY, ChatFakes
from openai_server import MODEL, WORDS, OpenAIServer, event, events, openai_server, refusal, stream_of
from starlette.responses import Response
from wire import on_the_wire

from firewall_ray.config.models import OpenAIModelConfig
from serve_app.models.remote import RemoteModel

TEXT = "".join(WORDS)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


def bought(server: OpenAIServer) -> ChatFakes:
    """Both models are at the server."""
    fakes = ChatFakes()
    config = OpenAIModelConfig(engine="openai", base_url=server.url, model=MODEL)
    fakes.gateway._models = {route: RemoteModel(key, config, fakes.serving) for route, key in fakes.gateway.ids.items()}
    return fakes


def test_both_clients_get_the_servers_words_whole_and_streamed(server: OpenAIServer) -> None:
    async def check(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as asked:
            asking: dict[str, Any] = {"model": "firewall", "max_tokens": 9, "messages": [{"role": "user", "content": EASY}]}
            whole = await asked.messages.create(**asking)
            async with asked.messages.stream(**asking) as stream:
                streamed = await stream.get_final_message()
            for message in (whole, streamed):
                assert [block.to_dict(exclude_none=True) for block in message.content] == [{"type": "text", "text": TEXT}]
                assert (message.model, message.usage.input_tokens, message.usage.output_tokens) == ("small", 5, 3)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asked_:
            assert (await asked_.responses.create(model="firewall", input=EASY)).output_text == TEXT
            async with asked_.responses.stream(model="firewall", input=EASY) as events_:
                response = await events_.get_final_response()
            assert response.output_text == TEXT
            assert response.usage is not None
            assert response.usage.total_tokens == 8

    on_the_wire(bought(server), check)
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}


def test_a_server_that_counts_no_tokens_of_streams_is_still_asked(server: OpenAIServer) -> None:
    """It refuses `stream_options`, which the client did not send, and cannot mend."""

    async def answer(body: dict[str, Any]) -> Response:
        return refusal(400, "Unknown: stream_options") if "stream_options" in body else events(server.chunks(body))

    server.answer = answer
    fakes = bought(server)
    asked = {"model": "firewall", "input": EASY, "stream": True}
    response = fakes.post("/v1/responses", asked)
    assert response.status_code == 200
    assert b"response.completed" in response.content
    assert b'"total_tokens":0' in response.content


def test_tool_calls_that_other_servers_send_whole_are_several_blocks(server: OpenAIServer) -> None:
    """All under index 0, or under none; each with an id of its own."""
    calls = [{"index": 0, "id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": f"[{i}]"}} for i in range(2)]

    async def answer(body: dict[str, Any]) -> Response:
        deltas = [{"tool_calls": [each]} for each in calls]
        chunks = [event(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
        return events(stream_of(*chunks, event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])))

    server.answer = answer

    async def check(port: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as asked:
            async with asked.responses.stream(model="firewall", input=EASY) as stream:
                output = (await stream.get_final_response()).output
        assert [(item.call_id, item.arguments) for item in output if item.type == "function_call"] == [("c0", "[0]"), ("c1", "[1]")]

    on_the_wire(bought(server), check)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_stream_that_was_cut_off_does_not_look_whole(server: OpenAIServer, path: str) -> None:
    async def answer(body: dict[str, Any]) -> Response:
        return events(server.chunks(body, num_words=1))

    server.answer = answer
    fakes = bought(server)
    said = {"input": EASY} if path == "/v1/responses" else {"max_tokens": 9, "messages": [{"role": "user", "content": EASY}]}
    response = fakes.post(path, {"model": "firewall", "stream": True, **said})
    assert b"event: error\n" in response.content
    assert not any(end in response.content for end in (b"response.completed", b"message_stop"))
    assert [each.status for each in fakes.recorder.exchanges] == [502]


def test_the_ingress_imports_neither_clients_types_nor_an_engine() -> None:
    """They take seconds and a hundred MiB; of requests, own small models read what is needed."""
    code = "import sys, serve_app.apis.translations; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"openai", "anthropic", "torch", "vllm", "ray"} & set(loaded)
