"""A gateway without Ray and models: a router and two models that do as a test says, and an HTTP client of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from pydantic_core import from_json, to_json

from firewall_ray.config.serving import Route, ServingConfig
from firewall_ray.tasks.base import prompt_id
from serve_app.gateway import Gateway
from serve_app.http.ingress import asgi_app
from serve_app.models.answers import Answer, Endpoint, ModelUnavailable, Unavailable, Usage
from serve_app.money.caps import SpendCaps
from serve_app.money.pricing import Pricing
from serve_app.recording.counters import LiveCounters
from serve_app.recording.exchange import Exchange
from serve_app.recording.spans import Spans
from serve_app.routing.decision import Arm, Decision
from serve_app.tracing import Tracing

IDS: dict[Route, str] = {"weak": "small", "strong": "large"}


@dataclass
class FakeRouter:
    """p_weak of a text is in `scores`, else 0.5; below the strong fraction it goes strong. `error` is raised instead."""

    scores: dict[str, float] = field(default_factory=dict)
    default_fraction: float = 0.3
    error: Exception | None = None
    delay_s: float = 0.0
    calls: list[tuple[list[str], float | None, bool]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    room: int = 1_000_000  # requests that the strong model may answer for the weak one
    all_spent: list[tuple[float | None, str, str | None]] = field(default_factory=list)

    async def decide(
        self, texts: list[str], strong_fraction: float | None, are_questions: bool, counts: bool = False, *, timeout_s: float
    ) -> list[Decision]:
        self.calls.append((texts, strong_fraction, are_questions))
        self.timeouts.append(timeout_s)
        async with asyncio.timeout(timeout_s):
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        threshold = self.default_fraction if strong_fraction is None else strong_fraction
        scores = [self.scores.get(text, 0.5) for text in texts]
        return [
            Decision("strong" if s < threshold else "weak", "score", s, threshold, "v1", False, threshold, query_id=prompt_id(text))
            for s, text in zip(scores, texts, strict=True)
        ]

    async def may_stand_in(self, decision: Decision, strong_fraction: float | None, timeout_s: float) -> bool:
        self.room -= 1
        return self.room >= 0

    def spent(self, strong_fraction: float | None, answered: Route, decided: Route | None, arm: Arm) -> None:
        self.all_spent.append((strong_fraction, answered, decided))


@dataclass
class FakeModel:
    """Answers with `text`, word by word where it streams. `why`: gives no answer. `breaks_after`: words, then it raises."""

    model_id: str
    text: str = "all of it"
    why: Unavailable | None = None
    breaks_after: int | None = None
    hangs: bool = False
    decoded: Callable[[list[list[int]]], list[str]] | None = None
    bodies: list[bytes] = field(default_factory=list)
    sessions: list[str | None] = field(default_factory=list)
    num_open: int = 0

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        self.bodies.append(body)
        self.sessions.append(session)
        if self.why is not None:
            raise ModelUnavailable(self.why)
        if self.hangs:
            self.num_open += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.num_open -= 1
        usage = Usage(from_json(body).get("max_tokens", 7), len(self.text.split()))
        if not streams:
            answer = {"object": endpoint, "model": self.model_id, "choices": [{"index": 0, "text": self.text}]}
            return Answer(200, to_json(answer), usage, 0.01)
        answer = Answer(200, b"", model_s=0.01, release=self._release)
        answer.body = self._chunks(answer, usage)
        self.num_open += 1
        return answer

    async def decode(self, prompts: list[list[int]]) -> list[str] | None:
        if self.why is not None:
            raise ModelUnavailable(self.why)
        return self.decoded(prompts) if self.decoded else None

    async def check(self) -> None:
        if self.why is not None:
            raise ModelUnavailable(self.why)

    async def _chunks(self, answer: Answer, usage: Usage) -> AsyncIterator[bytes]:
        for i, word in enumerate(self.text.split()):
            if i == self.breaks_after:
                raise RuntimeError("the engine died")
            yield b"data: " + to_json({"model": self.model_id, "choices": [{"index": 0, "text": word}]}) + b"\n\n"
        answer.usage = usage
        yield b"data: [DONE]\n\n"

    async def _release(self) -> None:
        self.num_open -= 1


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    exchanges: list[Exchange] = field(default_factory=list)

    def record(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)


class Fakes:
    """The gateway and everything around it. `serving`: the fields that matter to the test."""

    def __init__(
        self,
        router: Any = None,
        model_type: type[FakeModel] = FakeModel,
        shared: Any = None,
        tracing: Tracing | None = None,
        **serving: Any,
    ) -> None:
        self.router = router or FakeRouter()
        self.weak, self.strong = model_type(IDS["weak"]), model_type(IDS["strong"])
        self.recorder = Recorder()
        self.serving = ServingConfig.model_validate({"api_keys": "disabled", "allowed_hosts": ["gateway"], **serving})
        self.counters = LiveCounters(
            is_priced=bool(self.serving.prices),
            holds_budget=self.serving.budget_control is not None,
            keeps_text=self.serving.decision_log is not None and self.serving.decision_log.keep_text,
        )
        observers = [self.recorder, self.counters, *([] if tracing is None else [Spans(IDS)])]
        self.caps: SpendCaps | None = None
        if self.serving.spend_caps is not None:
            self.caps = SpendCaps(self.serving.spend_caps, shared, f"ingress-{uuid4().hex}", shared.dataset)
        pricing = Pricing(self.serving.prices, self.caps)
        models = self.models = {"weak": self.weak, "strong": self.strong}
        self.gateway = Gateway(self.router, models, IDS, self.serving, observers, shared, pricing)
        self.refused: list[int] = []  # statuses
        self.app = asgi_app(self.gateway, self.serving, self.counters, self.refused.append, tracing=tracing)

    def client(self) -> httpx.AsyncClient:
        """For tests in the same event loop. Errors that nobody handled become a 500, as behind a real server."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://gateway")

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """One request. body: JSON-able, or the bytes themselves."""
        content = body if isinstance(body, bytes) else to_json(body)

        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.post(path, content=content, headers={"content-type": "application/json", **(headers or {})})

        return asyncio.run(send())

    def chat(
        self, text: str = "Why?", model: str = "firewall", headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **options}
        return self.post("/v1/chat/completions", body, headers)
