"""Who is refused by a spend cap, until when, and what holds while the shared replica does not answer."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import Fakes
from pydantic_core import from_json
from spending_fakes import PRICES, Ingress, Shared, until

from serve_app.errors import RequestRefused
from serve_app.recording.exchange import Exchange

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
HOUR = 3_600


class Clock:
    """Unix seconds, as the test says."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def refusal(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str, str, int]:
    """Status, code, message and Retry-After."""
    status, headers, body = answer
    error = from_json(body)["error"]
    return status, error["code"], error["message"], int(headers["retry-after"])


def test_a_key_that_has_spent_its_day_is_refused_until_midnight_and_others_are_not(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        shared = Shared(tmp_path, clock)
        async with Ingress(shared, clock=clock, per_key={"day": 5}) as ingress:
            assert [(await ingress.ask(usd=3))[0] for _ in range(2)] == [200, 200]  # the second begins with 3 of 5 spent
            clock.now += 0.25
            status, code, message, retry_after_s = refusal(await ingress.ask())
            assert (status, code, retry_after_s) == (429, "spend_cap_reached", 12 * HOUR)  # 11 h 59 min 59.75 s, rounded up
            assert "(serving.spend_caps.per_key.day: 5 US dollars)" in message
            assert "2026-11-28T00:00:00Z" in message
            assert (await ingress.ask("bob"))[0] == 200
            clock.now += retry_after_s
            assert (await ingress.ask())[0] == 200

    run(test())


def test_of_two_caps_that_are_reached_the_one_that_holds_longer_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        async with Ingress(Shared(tmp_path, clock), clock=clock, all={"month": 4}, keys={"ann": {"day": 2}}) as ingress:
            await ingress.ask(usd=2)
            assert "keys.ann.day" in refusal(await ingress.ask())[2]
            assert (await ingress.ask("bob", usd=2))[0] == 200
            status, _, message, retry_after_s = refusal(await ingress.ask())
            assert (status, retry_after_s) == (429, 3 * 24 * HOUR + 12 * HOUR)  # to the first of December
            assert "All requests together have spent what is allowed a month (serving.spend_caps.all.month: 4 US" in message
            clock.now += 12 * HOUR  # another day, the same month
            assert refusal(await ingress.ask("bob"))[0] == 429

    run(test())


def test_every_endpoint_that_costs_is_refused_streams_too_and_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with Ingress(Shared(tmp_path), all={"day": 1}) as ingress:
            await ingress.ask()
            for path in ("chat/completions", "completions"):
                for options in ({}, {"stream": True}, {"model": "small"}, {"model": "firewall-0.9"}):
                    status, headers, body = await ingress.ask(path=path, **options)
                    assert (status, headers["content-type"], b"spend_cap" in body) == (429, "application/json", True)
            assert (await ingress.ask(path="route"))[0] == 200  # no model answers
            assert len(ingress.weak.bodies) + len(ingress.strong.bodies) == 1
            assert ingress.recorder.exchanges[-1].status == 429

    run(test())


def test_a_cap_of_nothing_lets_nothing_begin(tmp_path: Path) -> None:
    async def test() -> None:
        async with Ingress(Shared(tmp_path), keys={"ann": {"day": 0}}, per_key={"day": 1}) as ingress:
            assert [(await ingress.ask(key))[0] for key in ("ann", "bob")] == [429, 200]

    run(test())


def test_ten_times_nine_cents_are_ninety(tmp_path: Path) -> None:
    """In floating point they are 0.8999999999999999, and on another ingress replica 0.9."""

    async def test() -> None:
        async with Ingress(Shared(tmp_path), all={"day": 0.9}) as ingress:
            for _ in range(10):
                await ingress.spending.check("ann")
                ingress.spending.record(Exchange("chat", key_name="ann", cost_usd=0.09))
            with pytest.raises(RequestRefused, match="what is allowed a day"):
                await ingress.spending.check("ann")

    run(test())


def test_without_keys_the_cap_is_of_all_requests(tmp_path: Path) -> None:
    async def test() -> None:
        fakes = Fakes(shared=Shared(tmp_path), prices=PRICES, spend_caps={"all": {"day": 3}})
        async with fakes.client() as client:
            body = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}
            assert [(await client.post("/v1/chat/completions", json=body)).status_code for _ in range(2)] == [200, 429]

    run(test())


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_pays_for_what_was_done(tmp_path: Path, streams: bool) -> None:
    """Else whoever leaves before the last byte spends without end. The fake's prompts are of 7 tokens when nothing is said."""

    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, per_key={"day": 100_000}) as ingress:
            for _ in range(50):
                await ingress.ask(usd=100)  # what a prompt of this size comes to
            await until(lambda: shared.spent_usd() == 5_000)
            if streams:

                async def hangs(answer: Any, usage: Any) -> Any:
                    yield b"data: {}\n\n"
                    await asyncio.Event().wait()

                ingress.weak._chunks = hangs  # type: ignore[method-assign]
            else:
                ingress.weak.hangs = True
            asking = asyncio.create_task(ingress.ask(usd=100, stream=streams))
            await until(lambda: len(ingress.weak.bodies) == 51)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: shared.spent_usd() > 5_000)
            assert ingress.recorder.exchanges[-1].status == 499
            assert shared.spent_usd() - 5_000 == pytest.approx(100, rel=0.25)  # "stream" and its like are bytes too

    run(test())


# Restarts -------------------------------------------------------------------------------------------------------------


def test_what_was_spent_outlives_both_replicas(tmp_path: Path) -> None:
    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, per_key={"month": 5}) as ingress:
            await ingress.ask(usd=5)
        shared.stop()
        shared.start()
        async with Ingress(shared, per_key={"month": 5}) as ingress:
            await shared.loaded()
            assert [(await ingress.ask(key))[0] for key in ("ann", "bob")] == [429, 200]

    run(test())


def test_a_shared_replica_that_was_killed_before_it_saved_hears_all_again(tmp_path: Path) -> None:
    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, per_key={"month": 5}) as ingress:
            await shared.loaded()
            await ingress.ask(usd=5)
            shared.kill()
            assert (await ingress.ask())[0] == 429  # known here
            shared.start()
            await shared.loaded()
            await ingress.spending.tell()
            async with Ingress(shared, per_key={"month": 5}) as another:
                assert refusal(await another.ask())[1] == "spend_cap_reached"

    run(test())


def test_what_ends_when_the_shared_replica_is_gone_is_known_to_the_next(tmp_path: Path) -> None:
    """As when an application is deleted: its ingress replicas still answer what is in flight, the shared one has nothing to do."""

    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, per_key={"month": 5}) as ingress:
            await ingress.ask(usd=2)
            shared.stop()
            await ingress.ask(usd=3)
        shared.start()
        async with Ingress(shared, per_key={"month": 5}) as ingress:
            assert refusal(await ingress.ask())[1] == "spend_cap_reached"
        assert shared.spent_usd() == 5

    run(test())


def test_while_nobody_answers_each_ingress_replica_spends_its_part_of_what_was_left(tmp_path: Path) -> None:
    """Of 20 dollars 4 are spent: each of two may spend until it has spent 8 more."""

    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, all={"day": 20}) as one, Ingress(shared, all={"day": 20}) as other:
            await one.ask(usd=4)
            await one.spending.tell()
            await other.spending.tell()
            shared.kill()
            for ingress in (one, other):
                assert [(await ingress.ask(usd=2))[0] for _ in range(5)] == [200, 200, 200, 200, 503]
                status, code, _, retry_after_s = refusal(await ingress.ask())
                assert (status, code, retry_after_s) == (503, "spending_unknown", 1)
            shared.start()
            await shared.loaded()
            await one.spending.tell()
            await other.spending.tell()
            assert shared.spent_usd() == 20
            assert refusal(await one.ask())[1] == "spend_cap_reached"

    run(test())


def test_a_new_shared_replica_gives_no_part_twice_while_another_ingress_replica_has_not_told_it_all(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        shared = Shared(tmp_path, clock)
        async with Ingress(shared, clock=clock, all={"day": 20}) as one, Ingress(shared, clock=clock, all={"day": 20}) as silent:
            await one.ask(usd=2)
            await silent.ask(usd=2)
            await silent.spending.tell()
            await one.spending.tell()
            assert silent._telling is not None
            silent._telling.cancel()
            shared.stop()
            shared.start()
            await shared.loaded()
            # 16 are left, 8 for each; it is not asked how much is left anew.
            assert [(await one.ask(usd=4))[0] for _ in range(3)] == [200, 200, 503]
            await one.spending.tell()
            assert (await one.ask(usd=4))[0] == 503
            await silent.spending.tell()
            await one.spending.tell()
            assert (await one.ask(usd=4))[0] == 200
            clock.now += 1  # of one that never comes back nobody waits for long
            shared.stop()
            shared.start()
            await shared.loaded()
            await one.spending.tell()
            assert not one.spending._is_answered
            clock.now += 5
            await one.spending.tell()
            assert one.spending._is_answered

    run(test())


def test_an_ingress_replica_that_knows_nothing_yet_lets_nothing_begin(tmp_path: Path) -> None:
    async def test() -> None:
        shared = Shared(tmp_path)
        shared.kill()
        async with Ingress(shared, all={"day": 20}) as ingress:
            assert refusal(await ingress.ask())[:2] == (503, "spending_unknown")
            shared.start()
            await shared.loaded()
            await ingress.spending.tell()
            assert (await ingress.ask())[0] == 200

    run(test())


def test_an_old_shared_replica_that_ends_after_a_new_one_began_undoes_nothing(tmp_path: Path) -> None:
    """What the old one was told last, by an ingress replica that is gone, is in a file of its own."""

    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, all={"day": 20}) as ingress:
            await shared.loaded()
            await ingress.ask(usd=4)
        old = shared.keeper
        shared.start()
        await shared.loaded()
        async with Ingress(shared, all={"day": 20}) as ingress:
            await ingress.ask(usd=3)
        old.close()
        shared.stop()
        shared.start()
        await shared.loaded()
        assert shared.spent_usd() == 7

    run(test())


def test_requests_that_wait_at_a_time_share_a_call(tmp_path: Path) -> None:
    async def test() -> None:
        shared = Shared(tmp_path)
        async with Ingress(shared, all={"day": 1_000}) as ingress:
            calls = 0
            ask = shared.ask

            async def counted(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                await asyncio.sleep(0.01)
                return await ask(*arguments)

            shared.ask = counted  # type: ignore[method-assign]
            answers = await asyncio.gather(*(ingress.ask() for _ in range(50)))
            assert {status for status, _, _ in answers} == {200}
            assert calls <= 6

    run(test())
