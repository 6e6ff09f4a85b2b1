"""Requests and tokens a minute of a key: never more than the limit, and whoever waits as long as it is told is let in."""

import asyncio
from typing import Any

import pytest
from callers import CHAT, bearer, error_of
from gateway_fakes import Fakes
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api_keys import make_key
from serve_app.limits import KeyLimits
from serve_app.models.answers import Usage
from serve_app.recording.exchange import Exchange
from serve_app.routing.decision import Decision
from serve_app.shared.minutes import KeyMinutes, Limits
from serve_app.shared.replica import SharedReplica

KEY, CONFIG = make_key("ann")
HEADERS = bearer(KEY)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shared:
    """A shared replica in this process. is_up: else nobody answers."""

    def __init__(self, clock: Clock) -> None:
        self.replica = SharedReplica()
        self.replica._minutes = KeyMinutes(clock)
        self.is_up = True
        self.asked: list[str] = []

    async def ask(self, question: str, *arguments: Any) -> Any:
        self.asked.append(question)
        await asyncio.sleep(0)
        return await getattr(self.replica, question)(*arguments) if self.is_up else None


def limited(clock: Clock | None = None, shared: Shared | None = None, replicas: int = 1, **limits: int) -> Fakes:
    key = {**CONFIG.model_dump(), **limits}
    fakes = Fakes(shared=shared, api_keys=[key], ingress_replicas={"min": 1, "max": replicas}, max_in_flight_per_key=1_000)
    fakes.gateway._limits._own._clock = clock or Clock()
    return fakes


# One ingress replica -------------------------------------------------------------------------------------------------


def test_requests_beyond_the_limit_are_refused_until_the_minute_is_over() -> None:
    clock = Clock()
    fakes = limited(clock, requests_per_minute=3)
    found = []
    for _ in range(4):
        found.append(fakes.chat(headers=HEADERS))
        clock.now += 5
    assert [each.status_code for each in found] == [200, 200, 200, 429]
    assert [each.headers["x-ratelimit-remaining-requests"] for each in found] == ["2", "1", "0", "0"]
    # The minute began at 1000 with the first; they came 5 s apart.
    assert [each.headers["x-ratelimit-reset-requests"] for each in found] == ["60s", "55s", "50s", "45s"]
    assert {each.headers["x-ratelimit-limit-requests"] for each in found} == {"3"}
    assert "x-ratelimit-limit-tokens" not in found[0].headers
    refused = found[-1]
    error = error_of(refused)
    assert (error["code"], error["type"], refused.headers["retry-after"]) == ("rate_limit_exceeded", "rate_limit_error", "45")
    assert "requests_per_minute: 3" in error["message"]
    assert len(fakes.weak.bodies) == 3
    clock.now = 1015 + 44.9
    assert fakes.chat(headers=HEADERS).status_code == 429
    clock.now = 1015 + 45
    assert fakes.chat(headers=HEADERS).status_code == 200


def test_what_is_wrong_is_refused_before_it_is_counted_and_a_route_is_counted() -> None:
    fakes = limited(requests_per_minute=2)
    assert fakes.chat(model="gpt-5", headers=HEADERS).status_code == 404
    assert fakes.chat(n=10_000, headers=HEADERS).status_code == 400
    assert fakes.post("/v1/route", {"prompt": "Why?"}, HEADERS).status_code == 200
    assert fakes.chat(headers=HEADERS).headers["x-ratelimit-remaining-requests"] == "0"
    assert fakes.post("/v1/route", {"prompt": "Why?"}, HEADERS).status_code == 429


def test_failures_and_streams_say_what_is_left_too() -> None:
    fakes = limited(requests_per_minute=9)
    assert fakes.chat(stream=True, headers=HEADERS).headers["x-ratelimit-remaining-requests"] == "8"
    fakes.weak.why = fakes.strong.why = "dead"
    failed = fakes.chat(headers=HEADERS)
    assert (failed.status_code, failed.headers["x-ratelimit-remaining-requests"]) == (503, "7")


def test_tokens_are_taken_as_they_may_be_and_counted_as_they_were_used() -> None:
    """The fakes use 7 tokens, or max_tokens, for the prompt and 3 for the answer."""
    clock = Clock()
    fakes = limited(clock, tokens_per_minute=100)
    first = fakes.chat(max_tokens=40, headers=HEADERS)
    assert (first.status_code, first.headers["x-ratelimit-remaining-tokens"]) == (200, "60")  # 40 may be used
    second = fakes.chat(max_tokens=10, stream=True, headers=HEADERS)
    assert second.headers["x-ratelimit-remaining-tokens"] == "47"  # 43 were used by the first, 10 may be by this one
    refused = fakes.chat(max_tokens=60, headers=HEADERS)  # 43 + 13 were used
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-tokens"]) == (429, "44")
    assert "tokens_per_minute: 100" in error_of(refused)["message"]
    assert fakes.chat(max_tokens=44, headers=HEADERS).status_code == 200  # 44 + 3: three more than there were
    clock.now += 60
    # Three are owed to the minute that is over.
    assert fakes.chat(max_tokens=1, headers=HEADERS).headers["x-ratelimit-remaining-tokens"] == "96"


def test_a_request_that_no_model_answered_uses_no_tokens() -> None:
    fakes = limited(tokens_per_minute=100)
    fakes.weak.why = fakes.strong.why = "dead"
    assert fakes.chat(max_tokens=100, headers=HEADERS).status_code == 503
    fakes.weak.why = None
    assert fakes.chat(max_tokens=97, headers=HEADERS).status_code == 200


def test_a_request_that_may_come_to_more_than_a_minutes_tokens_needs_a_whole_minute_and_pays_in_the_next_ones() -> None:
    clock = Clock()
    fakes = limited(clock, tokens_per_minute=100)
    assert fakes.chat(max_tokens=247, headers=HEADERS).status_code == 200  # the fakes use 250
    refused = fakes.chat(max_tokens=1, headers=HEADERS)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "120")  # 250, 150, 50: room in the third minute
    clock.now += 119
    assert fakes.chat(max_tokens=1, headers=HEADERS).status_code == 429
    clock.now += 1
    assert fakes.chat(max_tokens=50, headers=HEADERS).status_code == 200


def test_keys_without_limits_pay_nothing_for_those_that_have_some() -> None:
    shared = Shared(Clock())
    other, config = make_key("bob")
    keys = [{**CONFIG.model_dump(), "requests_per_minute": 1}, config.model_dump()]
    fakes = Fakes(shared=shared, api_keys=keys, ingress_replicas={"min": 1, "max": 2})
    responses = [fakes.chat(headers=bearer(other)) for _ in range(3)]
    assert [each.status_code for each in responses] == [200] * 3
    assert not [name for name in responses[0].headers if name.startswith("x-ratelimit")]
    assert shared.asked == []
    assert fakes.chat(headers=HEADERS).status_code == 200
    assert shared.asked == ["take"]


def test_a_client_that_leaves_a_stream_pays_for_what_was_sent() -> None:
    limits = KeyLimits(limited(tokens_per_minute=2_000).serving, clock=Clock())
    decision = Decision("weak", "score", 0.75, 0.5, "v1", False, 0.3)

    async def over(usage: Usage | None, **fields: Any) -> int:
        grant = await limits.begin("ann", 500)
        limits.record(Exchange("chat", "ann", decision=decision, grant=grant, usage=usage, **fields))
        return limits._own._tokens["ann"].used

    assert asyncio.run(over(Usage(10, 5), status=499, client_left=True)) == 15
    assert asyncio.run(over(None, status=499, client_left=True)) == 515  # nobody knows: what it may have used
    assert asyncio.run(over(None, status=503)) == 515


# Laws ----------------------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 30), st.integers(0, 90)), max_size=60)


@given(steps, st.integers(1, 5), st.integers(1, 50))
def test_over_time_nobody_gets_more_than_the_limit_a_minute(
    steps: list[tuple[float, int, int]], num_requests: int, num_tokens: int
) -> None:
    """steps: seconds that pass, tokens that a request may use, and that it uses. One more than minutes that passed: the first."""
    clock = Clock()
    minutes, limits = KeyMinutes(clock), Limits(num_requests, num_tokens)
    begun = used = 0
    for passed, may_use, uses in steps:
        clock.now += passed
        reserved = min(may_use, num_tokens)
        minutes_so_far = (clock.now - 1000) // 60 + 1
        taken = minutes.take("ann", limits, reserved)
        if taken.refused_by is None:
            assert used <= num_tokens * minutes_so_far  # what was owed is paid
            begun, used = begun + 1, used + uses
            minutes.correct("ann", num_tokens, taken.tokens_began_s, uses - reserved)
        assert begun <= num_requests * minutes_so_far


@given(steps, st.integers(1, 5), st.integers(1, 50))
def test_who_waits_as_long_as_it_is_told_is_let_in_and_no_shorter_wait_would_do(
    steps: list[tuple[float, int, int]], num_requests: int, num_tokens: int
) -> None:
    clock = Clock()
    minutes, limits = KeyMinutes(clock), Limits(num_requests, num_tokens)
    for passed, may_use, uses in steps:
        clock.now += passed
        reserved = min(may_use, num_tokens)
        taken = minutes.take("ann", limits, reserved)
        if taken.refused_by is not None:
            clock.now += taken.wait_s - 0.01
            assert minutes.take("ann", limits, reserved).refused_by is not None
            clock.now += 0.02
            taken = minutes.take("ann", limits, reserved)
            assert taken.refused_by is None
        minutes.correct("ann", num_tokens, taken.tokens_began_s, uses - reserved)


# Several ingress replicas --------------------------------------------------------------------------------------------


def answers(replicas: list[Fakes], num: int) -> list[int]:
    """Statuses of so many chats at once, in turn over the replicas."""

    async def run() -> list[int]:
        async def ask(fakes: Fakes) -> int:
            async with fakes.client() as client:
                return (await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 7}, headers=HEADERS)).status_code

        found = await asyncio.gather(*(ask(replicas[i % len(replicas)]) for i in range(num)))
        await asyncio.sleep(0.01)  # corrections
        return found

    return asyncio.run(run())


def test_a_limit_holds_over_all_ingress_replicas_together() -> None:
    clock = Clock()
    shared = Shared(clock)
    replicas = [limited(clock, shared, 3, requests_per_minute=20) for _ in range(3)]
    assert sorted(answers(replicas, 60)) == [200] * 20 + [429] * 40
    clock.now += 60
    assert answers(replicas, 60).count(200) == 20


def test_tokens_are_corrected_at_the_shared_replica() -> None:
    """Each takes 7 and uses 10 (7 for the prompt, 3 for the answer)."""
    clock = Clock()
    shared = Shared(clock)
    replicas = [limited(clock, shared, 2, tokens_per_minute=100) for _ in range(2)]
    assert answers(replicas, 6) == [200] * 6
    assert shared.replica._minutes._tokens["ann"].used == 60


def test_while_the_shared_replica_does_not_answer_each_lets_begin_its_part() -> None:
    clock = Clock()
    shared = Shared(clock)
    shared.is_up = False
    replicas = [limited(clock, shared, 3, requests_per_minute=20) for _ in range(3)]
    assert answers(replicas, 60).count(200) == 18  # 20 // 3 = 6 each
    fakes = limited(clock, shared, 30, requests_per_minute=20)
    assert fakes.chat(headers=HEADERS).headers["x-ratelimit-limit-requests"] == "1"  # nobody is locked out


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_the_waiting_of_a_refused_one_is_that_of_its_limit(limit: str) -> None:
    fakes = limited(Clock(), **{"requests_per_minute": 1_000, "tokens_per_minute": 100_000, limit: 10})
    statuses = [fakes.chat(max_tokens=7, headers=HEADERS) for _ in range(12)]
    refused = next(each for each in statuses if each.status_code == 429)
    assert f"{limit}: 10" in error_of(refused)["message"]
    assert refused.headers["retry-after"] == "60"
