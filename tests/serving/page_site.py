"""The page in a browser's tab, before the gateway with a router and models that do as a test says."""

import asyncio
import math
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import uvicorn
from gateway_fakes import FakeModel, FakeRouter, Fakes
from playwright.sync_api import Browser, Locator, Page
from pydantic_core import to_json

from serve_app.models.answers import Answer, Usage
from serve_app.routing.decision import Decision

EASY, HARD = "an easy one", "a hard one"  # p_weak 0.9 and 0.1; of anything else 0.5
ENDLESS = 10_000


@dataclass
class ChattyModel(FakeModel):
    """Streams a chat as vLLM does, a word at a time. pauses_after: words, then it waits until `go_on` is set. refusal: the body of
    its 400.
    """

    refusal: bytes | None = None
    pauses_after: int = ENDLESS
    ends_without_done: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)

    async def ask(self, *args: Any, **options: Any) -> Answer:
        return await super().ask(*args, **options) if self.refusal is None else Answer(400, self.refusal)

    async def _chunks(self, answer: Answer, usage: Usage) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            for i, word in enumerate(re.findall(r"\s*\S+", self.text)):
                if i == self.breaks_after:
                    raise RuntimeError("the engine died")
                while i == self.pauses_after and not self.go_on.is_set():
                    await asyncio.sleep(0.005)
                chunk = {"model": self.model_id, "choices": [{"index": 0, "delta": {"content": word}}]}
                yield b"data: " + to_json(chunk) + b"\n\n"
            if not self.ends_without_done:
                yield b"data: [DONE]\n\n"
        finally:
            self.num_open -= 1


class CalibratedRouter(FakeRouter):
    """As the real one, its threshold is infinite at the fractions 0 and 1."""

    async def decide(self, *args: Any, **options: Any) -> list[Decision]:
        infinite = {0: -math.inf, 1: math.inf}
        return [replace(d, threshold=infinite.get(d.threshold, d.threshold)) for d in await super().decide(*args, **options)]


class RouterWithCanary(CalibratedRouter):
    """The canary decides what is hard."""

    async def decide(self, *args: Any, **options: Any) -> list[Decision]:
        return [replace(d, arm="canary") if d.score == 0.1 else d for d in await super().decide(*args, **options)]


@dataclass
class Site:
    """The page in a browser tab, and what is behind it."""

    url: str
    page: Page
    fakes: Fakes
    weak: Any  # ChattyModel
    strong: Any
    requests: list[str] = field(default_factory=list)
    console_errors: list[str] = field(default_factory=list)

    @property
    def question(self) -> Locator:
        return self.page.get_by_role("textbox", name="Question")

    @property
    def decision(self) -> Locator:
        return self.page.get_by_role("status")

    def open(self) -> None:
        self.page.goto(self.url)

    def ask(self, question: str) -> None:
        self.question.fill(question)
        self.question.press("Enter")

    def post(self, question: str, num: int = 1, key: str = "") -> None:
        """Asks beside the page, for whole answers, of 5 tokens of prompt."""
        body = {"model": "firewall", "messages": [{"role": "user", "content": question}], "max_tokens": 5}
        with httpx.Client(headers={"authorization": f"Bearer {key}"} if key else {}) as client:
            for _ in range(num):
                client.post(f"{self.url}v1/chat/completions", json=body).raise_for_status()

    def answer(self, of: int = 0) -> Locator:
        return self.page.locator("article").nth(of)

    def text(self, of: int = 0) -> Locator:
        return self.answer(of).locator(".text")

    def shown(self, name: str) -> Locator:
        """A term's value, in either list."""
        return self.page.locator(f"dt:text-is('{name}') + dd")


def box(of: Locator) -> Any:
    found = of.bounding_box()
    assert found is not None
    return found


@contextmanager
def site_of(
    browser: Browser, *, router: FakeRouter | None = None, tab: dict[str, Any] | None = None, **serving: Any
) -> Iterator[Site]:
    fakes = Fakes(router or CalibratedRouter(scores={EASY: 0.9, HARD: 0.1}), ChattyModel, **serving)
    fakes.weak.text, fakes.strong.text = "the weak answer", "the strong answer"
    server = uvicorn.Server(uvicorn.Config(fakes.app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    context = browser.new_context(**(tab or {}))
    page = context.new_page()
    page.set_default_timeout(20_000)
    site = Site(f"http://127.0.0.1:{port}/", page, fakes, fakes.weak, fakes.strong)
    page.on("request", lambda request: site.requests.append(request.url))
    page.on("console", lambda message: site.console_errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: site.console_errors.append(str(error)))
    try:
        yield site
    finally:
        context.close()
        server.should_exit = True
        thread.join()
        assert {url.split("/")[2] for url in site.requests if not url.startswith("data:")} == {f"127.0.0.1:{port}"}
        # What failed on purpose is logged by the browser itself; all else is the page's fault.
        assert [error for error in site.console_errors if not error.startswith("Failed to load resource")] == []
