"""A model that answers chats as OpenAI-compatible servers do, and what comes of it on the other APIs' endpoints."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from gateway_fakes import FakeModel, FakeRouter, Fakes
from pydantic_core import from_json, to_json

from serve_app.models.answers import Answer, Endpoint, ModelUnavailable, Usage

USAGE = Usage(prompt_tokens=12, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)
EASY, HARD = "What is 1 + 1?", "Prove it."


def call(name: str, arguments: str, call_id: str = "call_1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@dataclass
class ChatModel(FakeModel):
    """Answers with `message`, in pieces of three characters where it streams. refusal: status and words, in place of an answer."""

    message: dict[str, Any] = field(default_factory=lambda: {"content": "all of it"})
    finish_reason: str = "stop"
    stop_reason: str | int | None = None
    refusal: tuple[int, str] | None = None
    raw: bytes | None = None  # in place of an answer

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        assert endpoint == "chat"
        self.bodies.append(body)
        self.sessions.append(session)
        if self.why is not None:
            raise ModelUnavailable(self.why)
        if self.refusal is not None:
            status, words = self.refusal
            return Answer(status, to_json({"error": {"message": words, "type": "x", "param": None, "code": None}}))
        if not streams:
            choice = {"index": 0, "message": {"role": "assistant", **self.message}, **self._finish()}
            whole = {"id": "1", "object": "chat.completion", "model": self.model_id, "choices": [choice]}
            return Answer(200, to_json(whole) if self.raw is None else self.raw, USAGE, 0.01)
        answer = Answer(200, b"", model_s=0.01, release=self._release)
        answer.body = self._events(answer)
        self.num_open += 1
        return answer

    @property
    def asked(self) -> dict[str, Any]:
        """The last body."""
        parsed: dict[str, Any] = from_json(self.bodies[-1])
        return parsed

    def _finish(self) -> dict[str, Any]:
        return {"finish_reason": self.finish_reason, "stop_reason": self.stop_reason}

    def _deltas(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for name in ("reasoning", "content", "refusal"):
            deltas += [{name: piece} for piece in pieces(self.message.get(name) or "")]
        for i, each in enumerate(self.message.get("tool_calls") or ()):
            function = each["function"]
            begun = {"index": i, "id": each["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}
            deltas.append({"tool_calls": [begun]})
            deltas += [{"tool_calls": [{"index": i, "function": {"arguments": each}}]} for each in pieces(function["arguments"])]
        return deltas

    async def _events(self, answer: Answer) -> AsyncIterator[bytes]:
        if self.raw is not None:
            yield self.raw
        for i, delta in enumerate(self._deltas()):
            if i == self.breaks_after:
                raise RuntimeError("the engine died")
            yield self._event({"index": 0, "delta": delta, "finish_reason": None})
        answer.usage = USAGE
        # What left together.
        yield self._event({"index": 0, "delta": {}, **self._finish()}) + b"data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any]) -> bytes:
        event = {"id": "1", "object": "chat.completion.chunk", "model": self.model_id, "choices": [choice]}
        return b"data: " + to_json(event) + b"\n\n"


def pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


class ChatFakes(Fakes):
    """At the default strong fraction, 0.3, HARD goes strong and EASY weak; both models answer the same."""

    weak: ChatModel
    strong: ChatModel

    def __init__(self, message: dict[str, Any] | None = None, finish_reason: str = "stop", **serving: Any) -> None:
        super().__init__(FakeRouter({EASY: 0.75, HARD: 0.125}), ChatModel, **serving)
        for model in (self.weak, self.strong):
            model.message = message or model.message
            model.finish_reason = finish_reason


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's, each of which has its name twice."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.content.split(b"\n\n")[:-1]:
        name, _, data = block.partition(b"\n")
        events.append(from_json(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


def firewall_headers(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-firewall")}


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
