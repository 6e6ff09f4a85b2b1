"""A small real HTTP server in a thread that behaves like OpenAI's, or as badly as a test says."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from pydantic_core import from_json, to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "gpt-big"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
WORDS = ("one", " two\u2028\x85", " three")  # line ends to str.splitlines, but not to the standard of server-sent events


@dataclass
class OpenAIServer:
    """url: ends in /v1. answer: instead of what OpenAI would do. left: how many streams were ended by the client."""

    url: str = ""
    answer: Callable[[dict[str, Any]], Awaitable[Response]] | None = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)  # path, headers, body
    num_left: int = 0

    async def complete(self, request: Request) -> Response:
        body = from_json(await request.body())
        self.seen.append((request.url.path, dict(request.headers), body))
        if self.answer is not None:
            return await self.answer(body)
        if body["model"] != MODEL:
            return refusal(404, f"The model {body['model']} does not exist")
        if body.get("stream"):
            return events(self.chunks(body))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(WORDS)}}
        return raw_json({"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": USAGE})

    async def chunks(self, body: dict[str, Any], num_words: int = len(WORDS), hangs: bool = False) -> AsyncIterator[bytes]:
        """A stream of WORDS; cut off, or silent from then on, after some of them."""
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        last: dict[str, Any] = {"usage": None} if with_usage else {}
        try:
            yield b": keep-alive\n\n"
            for word in WORDS[:num_words]:
                yield event(choices=[{"index": 0, "delta": {"content": word}}], **last)
            if hangs:
                await asyncio.Event().wait()
            if num_words < len(WORDS):
                return
            if with_usage:
                yield event(choices=[], usage=USAGE)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_left += 1
            raise

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL}]})


def raw_json(content: Any) -> Response:
    """JSON with its characters as they are."""
    return Response(to_json(content), media_type="application/json")


def event(**fields: Any) -> bytes:
    """One event of a chat's stream."""
    return b"data: " + to_json({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **fields}) + b"\n\n"


def events(chunks: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(chunks, media_type="text/event-stream")


def refusal(status: int, message: str = "No.") -> Response:
    """In OpenAI's shape."""
    return JSONResponse({"error": {"message": message, "type": "x", "param": "p", "code": "c"}}, status)


# Answers that are none: for `OpenAIServer.answer`.


async def garbage(body: Any) -> Response:
    return Response(b"<html>", 200)


async def no_choices(body: Any) -> Response:
    return raw_json({"object": "list"})


async def error_with_200(body: Any) -> Response:
    return raw_json({"error": {"message": "no", "code": 500}})


async def error_event_first(body: Any) -> Response:
    return events(stream_of(b'data: {"error": {"message": "overloaded"}}\n\n'))


async def number_first(body: Any) -> Response:
    return events(stream_of(b"data: 5\n\n"))


async def no_events(body: Any) -> Response:
    return events(stream_of(b": nothing\n\n"))


async def done_at_once(body: Any) -> Response:
    return events(stream_of(b"data: [DONE]\n\n"))


async def slow(body: Any) -> Response:
    await asyncio.sleep(60)
    return Response()


async def stream_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _drip() -> AsyncIterator[bytes]:
    while True:  # never silent for as long as the timeout
        yield b" "
        await asyncio.sleep(0.02)


async def dripping(body: Any) -> Response:
    return StreamingResponse(_drip(), media_type="application/json")


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """It runs on a free port of the loopback interface until the context ends."""
    server = OpenAIServer()
    routes = [
        Route("/v1/chat/completions", server.complete, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
        Route("/v1/models", server.models),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="critical", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    server.url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1"
    yield server
    running.should_exit = True
    thread.join()
