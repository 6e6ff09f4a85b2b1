"""Ten thousand requests over two ingress replicas, restarts of every kind among them: no cap is passed, nothing is lost."""

import asyncio
import random
from pathlib import Path

import pytest
from gateway_fakes import Recorder
from spending_fakes import KEYS, Ingress, Shared

from serve_app.money import caps, keeper, ledger
from serve_app.money.ledger import ALL

MAX_USD = 9
NUM_REQUESTS, NUM_CLIENTS = 10_000, 16


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "TELL_EVERY_S", 0.05)
    monkeypatch.setattr(ledger, "AWAITED_S", 0.2)
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", 0.05)


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
                    status, _, body = await ingresses[number % 2].ask(key, usd, stream=streams)
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
        await shared.loaded()
        assert (shared.spent_usd(), shared.spent_usd("bob")) == (spent, bob_spent)

    asyncio.run(run())
