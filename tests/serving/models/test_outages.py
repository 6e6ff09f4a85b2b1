"""Outages: said in the log once at each end, `Retry-After` by what they lasted, providers left alone, streams that fall silent."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from serve_app.models.answers import ModelUnavailable, Unavailable
from serve_app.models.breaker import FIRST_REST_S, MAX_REST_S, NUM_FAILURES, Breaker
from serve_app.models.in_time import in_time
from serve_app.models.outage import MAX_RETRY_AFTER_S, Outage


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("strong", 60, clock)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        outage.end()
        outage.begin("no replica is well (EngineDead)")
        outage.begin("no replica is well (EngineDead)")
        clock.now = 43.4
        outage.end()
        outage.end()
    assert caplog.messages == [
        "models.strong is out: no replica is well (EngineDead).",
        "models.strong answers again, after 43 s.",
    ]


def test_retry_after_is_what_is_left_of_an_outage_as_long_as_the_one_before(clock: Clock) -> None:
    outage = Outage("strong", 60, clock)
    outage.begin("x")
    clock.now = 20
    assert outage.remaining_s == 40  # 60 - 20
    clock.now = 80  # later than expected: as long again as it lasts already
    assert outage.remaining_s == 80
    outage.end()
    clock.now = 100
    outage.begin("x")
    assert outage.remaining_s == 80
    clock.now = 179.5
    assert outage.remaining_s == 1  # never "at once"
    clock.now = 100_000
    assert outage.remaining_s == MAX_RETRY_AFTER_S


def fail(breaker: Breaker, why: Unavailable = "timeout") -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as raised, breaker.closed():
        raise ModelUnavailable(why)
    return raised.value


def test_a_provider_that_fails_in_a_row_is_left_alone_and_then_tried_by_one(clock: Clock) -> None:
    breaker = Breaker("strong", clock)
    for _ in range(NUM_FAILURES):
        assert fail(breaker).why == "timeout"
    clock.now = FIRST_REST_S - 2
    with pytest.raises(ModelUnavailable) as refused, breaker.closed():
        pytest.fail("it was asked")
    assert (refused.value.why, refused.value.retry_after_s) == ("dead", 2.0)
    clock.now = FIRST_REST_S
    with breaker.closed():  # the one that tries; nobody else meanwhile
        with pytest.raises(ModelUnavailable, match="dead"), breaker.closed():
            pytest.fail("it was asked")
    with breaker.closed(), breaker.closed():
        pass


def test_a_rest_is_twice_as_long_when_the_try_fails_up_to_a_minute(clock: Clock) -> None:
    breaker = Breaker("strong", clock)
    for _ in range(NUM_FAILURES):
        fail(breaker)
    rests = [FIRST_REST_S]
    for _ in range(5):
        clock.now += rests[-1]
        rests.append(fail(breaker).retry_after_s)
    assert rests == [5, 10, 20, 40, 60, 60]
    assert rests[-1] == MAX_REST_S


def test_requests_that_were_under_way_make_no_rest_longer(clock: Clock) -> None:
    breaker = Breaker("strong", clock)
    under_way = breaker.closed()
    under_way.__enter__()
    for _ in range(NUM_FAILURES):
        fail(breaker)
    clock.now = 3
    late = ModelUnavailable("timeout")
    under_way.__exit__(type(late), late, None)
    clock.now = FIRST_REST_S
    with breaker.closed():
        pass


@pytest.mark.parametrize("good", ["an answer", "overloaded", "a client that leaves"])
def test_only_failures_in_a_row_count(clock: Clock, good: str) -> None:
    breaker = Breaker("strong", clock)
    for _ in range(3):
        for _ in range(NUM_FAILURES - 1):
            fail(breaker)
        if good == "overloaded":
            fail(breaker, "overloaded")
        elif good == "an answer":
            with breaker.closed():
                pass
        else:
            break
    with breaker.closed():
        pass


def test_a_client_that_leaves_the_one_try_leaves_it_to_the_next(clock: Clock) -> None:
    breaker = Breaker("strong", clock)
    for _ in range(NUM_FAILURES):
        fail(breaker)
    clock.now = FIRST_REST_S
    with pytest.raises(asyncio.CancelledError), breaker.closed():
        raise asyncio.CancelledError
    with breaker.closed():
        pass


async def _parts(*waits_s: float) -> AsyncIterator[float]:
    for wait_s in waits_s:
        await asyncio.sleep(wait_s)
        yield wait_s


@pytest.mark.parametrize(
    ("waits_s", "pause_s", "total_s", "num_parts"),
    [((0, 0, 0), 5, 5, 3), ((0, 0, 60), 0.05, 60, 2), ((0.02,) * 200, 60, 0.1, None)],
)
def test_a_stream_that_falls_silent_or_has_no_end_is_given_up(
    waits_s: tuple[float, ...], pause_s: float, total_s: float, num_parts: int | None
) -> None:
    seen: list[float] = []

    async def read() -> None:
        async for part in in_time(_parts(*waits_s), pause_s, total_s):
            seen.append(part)  # noqa: PERF401 -- what comes before the error is kept

    if num_parts == len(waits_s):
        asyncio.run(read())
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(read())
    assert num_parts is None or len(seen) == num_parts


def test_a_slow_reader_is_no_silent_stream() -> None:
    async def read() -> int:
        count = 0
        async for _ in in_time(_parts(0, 0, 0), 0.05, 60):
            await asyncio.sleep(0.1)
            count += 1
        return count

    assert asyncio.run(read()) == 3
