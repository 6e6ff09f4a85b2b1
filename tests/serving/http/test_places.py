"""A key's requests in flight over several ingress replicas: never more than its limit, and none that nobody gives back."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve_app.http.places import KeyPlaces
from serve_app.shared.replica import FORGOTTEN_AFTER_S, Places, SharedReplica

LIMIT = 7


class Direct:
    """A shared replica in this process. is_up: else nobody answers."""

    def __init__(self) -> None:
        self.replica = SharedReplica()
        self.is_up = True

    async def ask(self, question: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return await getattr(self.replica, question)(*arguments) if self.is_up else None


def ingresses(num: int, shared: Any) -> list[KeyPlaces]:
    return [KeyPlaces(LIMIT, shared, f"ingress-{i}") for i in range(num)]


def test_four_ingress_replicas_let_in_as_many_as_the_limit_says_together() -> None:
    async def run() -> tuple[int, int]:
        replicas, most, refused, here = ingresses(4, Direct()), 0, 0, 0

        async def request(number: int) -> None:
            nonlocal most, refused, here
            rng = random.Random(number)
            await asyncio.sleep(rng.random() / 20)
            async with replicas[number % 4].place("ann") as granted:
                if not granted:
                    refused += 1
                    return
                here += 1
                most = max(most, here)
                await asyncio.sleep(rng.random() / 50)
                here -= 1

        await asyncio.gather(*(request(number) for number in range(200)))
        return most, refused

    most, refused = asyncio.run(run())
    assert most == LIMIT
    assert 0 < refused < 200


@pytest.mark.parametrize("num", [1, 3])
def test_every_place_comes_back_also_of_requests_that_fail_or_are_cancelled(num: int) -> None:
    async def run() -> list[bool]:
        shared = Direct()
        replicas = ingresses(num, shared if num > 1 else None)

        async def request(number: int) -> None:
            async with replicas[number % num].place("ann"):
                if number % 3 == 0:
                    raise RuntimeError
                await asyncio.sleep(number % 3 - 1)  # every third one stays until it is cancelled

        tasks = [asyncio.create_task(request(number)) for number in range(60)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # those that leave
        async with AsyncExitStack() as stack:
            return [await stack.enter_async_context(replicas[i % num].place("ann")) for i in range(LIMIT + 1)]

    assert asyncio.run(run()) == [True] * LIMIT + [False]


def test_keys_do_not_take_each_others_places() -> None:
    async def run() -> list[bool]:
        (replica,) = ingresses(1, Direct())
        async with AsyncExitStack() as stack:
            for _ in range(LIMIT):
                await stack.enter_async_context(replica.place("ann"))
            return [await stack.enter_async_context(replica.place(key)) for key in ("ann", "bob")]

    assert asyncio.run(run()) == [False, True]


def test_without_the_shared_replica_each_holds_the_limit_by_itself_and_a_new_one_learns_what_is_in_flight() -> None:
    async def run() -> tuple[list[bool], list[bool]]:
        shared = Direct()
        first, second = ingresses(2, shared)
        async with AsyncExitStack() as stack:
            shared.is_up = False
            alone = [await stack.enter_async_context(first.place("ann")) for _ in range(LIMIT + 1)]
            shared.replica, shared.is_up = SharedReplica(), True
            heartbeat = asyncio.create_task(first.tell_forever())
            await asyncio.sleep(0.05)
            heartbeat.cancel()
            together = [await stack.enter_async_context(each.place("ann")) for each in (first, second)]
        return alone, together

    alone, together = asyncio.run(run())
    assert alone == [True] * LIMIT + [False]
    assert together == [False, False]


def test_the_places_of_an_ingress_replica_that_is_gone_are_free_again() -> None:
    now = 0.0
    places = Places(lambda: now)
    assert [places.enter("gone", "ann", 2) for _ in range(3)] == [True, True, False]
    now = FORGOTTEN_AFTER_S
    places.tell("here", {})
    assert not places.enter("here", "ann", 2)
    now = FORGOTTEN_AFTER_S + 1
    places.tell("here", {})
    assert [places.enter("here", "ann", 2) for _ in range(3)] == [True, True, False]


def test_a_place_that_is_given_back_twice_is_one_place() -> None:
    places = Places()
    places.leave("a", "ann")
    assert [places.enter("a", "ann", 1) for _ in range(2)] == [True, False]
