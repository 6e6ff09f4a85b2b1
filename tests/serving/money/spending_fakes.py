"""Ingress replicas with spend caps, and the shared one, all in this process: without Ray, over a folder of the test's."""

import asyncio
import random
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway_fakes import Fakes, Recorder
from pydantic_core import to_json

from firewall_ray.store.layout import ArtifactStore
from serve_app.money.keeper import LedgerKeeper
from serve_app.money.ledger import ALL
from serve_app.shared.replica import SharedReplica

KEYS = {"ann": "sk-ann", "bob": "sk-bob"}
# A prompt token costs a dollar. The fakes take `max_tokens` for the number of a prompt's tokens.
PRICES = {route: {"prompt": 1e6, "completion": 0} for route in ("weak", "strong")}

Answer = tuple[int, dict[str, str], bytes]  # status, headers and body


async def until(condition: Callable[[], Any]) -> None:
    """Fails after what is ample on a busy machine."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Shared:
    """A shared replica in this process, asked as `SharedState` asks it; each way takes a moment. clock: Unix seconds."""

    def __init__(self, root: Path | str, clock: Callable[[], float] = time.time) -> None:
        self.dataset = ArtifactStore(str(root)).spending()
        self._clock = clock
        self._rng = random.Random(0)
        self.replica: SharedReplica | None = None
        self.start()

    async def ask(self, question: str, *arguments: Any) -> Any:
        await self._way()
        if self.replica is None:
            return None
        answer = await getattr(self.replica, question)(*arguments)
        await self._way()
        return answer if self.replica is not None else None

    async def _way(self) -> None:
        await asyncio.sleep(self._rng.choice([0, 0, 0.001]))

    @property
    def keeper(self) -> LedgerKeeper:
        assert self.replica is not None
        assert self.replica._spending is not None
        return self.replica._spending

    def spent_usd(self, key: str = ALL) -> float:
        """This month."""
        usd = self.keeper._ledger.spent([key]).usd
        return usd[min(usd, key=len)][key]  # 2026-11, beside 2026-11-27

    def start(self) -> None:
        self.replica = SharedReplica()
        self.replica._spending = LedgerKeeper(self.dataset, lambda *_: None, self._clock)

    async def loaded(self) -> None:
        """Once it has read what was saved."""
        await self.keeper.loaded()

    def is_saved(self) -> bool:
        return self.keeper._saved_version == self.keeper._ledger.version

    def kill(self) -> None:
        """As SIGKILL does: what was not saved yet is gone."""
        if self.keeper._keeping is not None:
            self.keeper._keeping.cancel()
        assert self.replica is not None
        self.replica._spending = self.replica = None

    def stop(self) -> None:
        """As Serve does."""
        self.keeper.close()
        self.kill()


class Ingress(Fakes):
    """An ingress replica with its heartbeats. recorder: of several."""

    def __init__(
        self, shared: Any, recorder: Recorder | None = None, clock: Callable[[], float] = time.time, **spend_caps: Any
    ) -> None:
        names = [{"name": name, "sha256": sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
        limits = {"max_in_flight": 1_000, "max_in_flight_per_key": 1_000}
        super().__init__(shared=shared, api_keys=names, prices=PRICES, spend_caps=spend_caps, **limits)
        if recorder is not None:
            self.gateway._observers[1] = recorder
        assert self.caps is not None
        self.spending = self.caps
        self.spending._clock = clock
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Ingress":
        self._telling = asyncio.create_task(self.spending.tell_forever())
        await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_: object) -> None:
        """As the lifespan ends it."""
        assert self._telling is not None
        self._telling.cancel()
        await self.spending.close()

    async def ask(self, key: str = "ann", usd: int = 1, path: str = "chat/completions", **options: Any) -> Answer:
        """Straight through ASGI, as a client library would take longer than all else."""
        said = {"messages": [{"role": "user", "content": "Why?"}]} if path.startswith("chat") else {"prompt": "Why?"}
        body = to_json({"model": "firewall", **said, "max_tokens": usd, **options})
        received, sent = asyncio.Queue[dict[str, Any]](), list[dict[str, Any]]()
        received.put_nowait({"type": "http.request", "body": body, "more_body": False})

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {KEYS[key]}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": f"/v1/{path}", "raw_path": b"", "query_string": b"", "headers": headers}
        await self.app(scope, received.get, send)  # type: ignore[arg-type]
        start, *rest = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], found, b"".join(message.get("body", b"") for message in rest)
