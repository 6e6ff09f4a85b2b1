"""Spend caps over two ingress replicas and restarts of every kind: never past a cap by more than was in flight, and nothing lost."""

import asyncio
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import Fakes, Recorder
from pydantic_core import to_json

from serve_app.money import caps, keeper, ledger
from serve_app.money.ledger import ALL
from serve_app.shared.replica import SharedReplica

KEYS = {"ann": "sk-ann", "bob": "sk-bob"}
# A prompt token costs a dollar. The fakes take `max_tokens` for the number of a prompt's tokens.
PRICES = {route: {"prompt": 1e6, "completion": 0} for route in ("weak", "strong")}
MAX_USD = 9
NUM_REQUESTS, NUM_CLIENTS = 10_000, 16


@pytest.fixture(autouse=True)
def _no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.shared.replica.RayMetrics", lambda: lambda *_: None)


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(caps, "TELL_EVERY_S", 0.05)
    monkeypatch.setattr(ledger, "AWAITED_S", 0.2)
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", 0.05)
    return


class Shared:
    """A shared replica in this process that keeps its ledger under `root`, as `SharedState` asks it; each way takes a moment."""

    def __init__(self, root: Path) -> None:
        from firewall_ray.store.layout import ArtifactStore

        self._dataset = ArtifactStore(str(root)).spending()
        self._rng = random.Random(0)
        self.replica: SharedReplica | None = SharedReplica(self._dataset)
        self.most_usd = 0.0  # that any shared replica knew of

    async def ask(self, question: str, *arguments: Any) -> Any:
        await self._way()
        if self.replica is None:
            return None
        answer = await getattr(self.replica, question)(*arguments)
        self.most_usd = max(self.most_usd, self.spent_usd())
        await self._way()
        return answer if self.replica is not None else None

    async def _way(self) -> None:
        await asyncio.sleep(self._rng.choice([0, 0, 0.001]))

    def spent_usd(self, key: str = ALL) -> float:
        assert self.replica is not None
        assert self.replica._spending is not None
        (month,) = [
            by_key for period, by_key in self.replica._spending._ledger.spent().usd.items() if len(period) == len("2026-11")
        ]
        return month.get(key, 0.0)

    def kill(self) -> None:
        """As SIGKILL does: what was not saved yet is gone."""
        assert self.replica is not None
        ended, self.replica = self.replica, None
        assert ended._spending is not None
        if ended._spending._keeping is not None:
            ended._spending._keeping.cancel()
        ended._spending = None

    def stop(self) -> None:
        """As Serve does."""
        assert self.replica is not None
        assert self.replica._spending is not None
        self.replica._spending.close()
        self.kill()

    def start(self) -> None:
        self.replica = SharedReplica(self._dataset)


class Ingress(Fakes):
    """An ingress replica with its heartbeats."""

    def __init__(self, shared: Any, recorder: Recorder | None = None, **spend_caps: Any) -> None:
        names = [{"name": name, "sha256": sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
        limits = {"max_in_flight": 1_000, "max_in_flight_per_key": 1_000}
        super().__init__(shared=shared, api_keys=names, prices=PRICES, spend_caps=spend_caps, **limits)
        if recorder is not None:  # of several
            self.gateway._observers[1] = recorder
        assert self.caps is not None
        self.spending = self.caps
        self._telling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Ingress":
        self._telling = asyncio.create_task(self.spending.tell_forever())
        await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_: object) -> None:
        """As the lifespan ends it."""
        assert self._telling is not None
        self._telling.cancel()
        await self.spending.tell()

    async def ask(
        self, key: str = "ann", usd: int = 1, path: str = "chat/completions", **options: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; straight through ASGI, as a client library would take longer than all else."""
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


def of(shared: Any, **spend_caps: Any) -> Ingress:
    return Ingress(shared, **spend_caps)


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_fast")
def test_ten_thousand_requests_over_two_ingress_replicas_with_restarts_in_the_middle(tmp_path: Path) -> None:
    rng = random.Random(1)
    requests = [(rng.choice(list(KEYS)), rng.randint(1, MAX_USD), rng.random() < 0.3) for _ in range(NUM_REQUESTS)]
    total = sum(usd for _, usd, _ in requests)
    bobs = sum(usd for key, usd, _ in requests if key == "bob")
    limits = {"all": {"month": round(0.65 * total)}, "keys": {"bob": {"month": round(0.5 * bobs)}}}
    recorder = Recorder()

    async def run() -> None:
        shared = Shared(tmp_path)
        ingresses = [await Ingress(shared, recorder, **limits).__aenter__() for _ in range(2)]
        left = list(enumerate(requests))[::-1]
        reached: dict[str, bool] = {}

        async def restarts() -> None:
            while len(left) > 0.7 * NUM_REQUESTS:
                await asyncio.sleep(0.005)
            shared.kill()
            await asyncio.sleep(0.1)
            shared.start()
            while len(left) > 0.55 * NUM_REQUESTS:
                await asyncio.sleep(0.005)
            gone, ingresses[0] = ingresses[0], await Ingress(shared, recorder, **limits).__aenter__()
            await asyncio.sleep(0.2)  # Serve waits for what is in flight
            await gone.__aexit__()
            while len(left) > 0.4 * NUM_REQUESTS:
                await asyncio.sleep(0.005)
            shared.stop()
            shared.start()

        async def client() -> None:
            while left:
                number, (key, usd, streams) = left.pop()
                while True:
                    was_reached = reached.get(ALL, False) or reached.get(key, False)
                    status, headers, body = await ingresses[number % 2].ask(key, usd, stream=streams)
                    if status != 503:  # spending_unknown: a client tries again
                        break
                    await asyncio.sleep(0.01)
                assert status in (200, 429), body
                assert not (was_reached and status == 200), "one began after the cap was reached"
                if status == 429:
                    assert b"spend_cap_reached" in body
                if shared.replica is not None:
                    reached[ALL] = shared.spent_usd() >= limits["all"]["month"]
                    reached["bob"] = shared.spent_usd("bob") >= limits["keys"]["bob"]["month"]

        await asyncio.gather(restarts(), *(client() for _ in range(NUM_CLIENTS)))
        for ingress in ingresses:
            await ingress.__aexit__()

        answered = [exchange for exchange in recorder.exchanges if exchange.status == 200]
        spent = sum(exchange.cost_usd or 0 for exchange in answered)
        bob_spent = sum(exchange.cost_usd or 0 for exchange in answered if exchange.key_name == "bob")
        assert len(recorder.exchanges) >= NUM_REQUESTS
        assert limits["all"]["month"] <= spent <= limits["all"]["month"] + NUM_CLIENTS * MAX_USD
        assert limits["keys"]["bob"]["month"] <= bob_spent <= limits["keys"]["bob"]["month"] + NUM_CLIENTS * MAX_USD
        # Nothing lost and nothing twice, also on disk.
        assert (shared.spent_usd(), shared.spent_usd("bob")) == (spent, bob_spent)
        shared.stop()
        shared.start()
        assert shared.replica is not None
        await shared.ask("settle", "another", {}, None)  # begins to read
        await asyncio.sleep(0.1)
        assert (shared.spent_usd(), shared.spent_usd("bob")) == (spent, bob_spent)

    asyncio.run(run())
