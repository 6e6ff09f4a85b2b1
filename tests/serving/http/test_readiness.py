"""How often it is really looked whether router and models answer."""

import asyncio

import pytest
from callers import KEYS
from gateway_fakes import Fakes

from serve_app.http.readiness import BAD_S, GOOD_S, Readiness
from serve_app.models.answers import NotReady


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Check:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_calls = 0

    async def __call__(self) -> None:
        self.num_calls += 1
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error


def test_300_calls_without_a_key_cost_one_look() -> None:
    """They were 300 scorings, and as many calls with our key to a model that is bought."""

    async def run() -> None:
        served = Fakes(api_keys=KEYS)
        async with served.client() as client:
            responses = await asyncio.gather(*(client.get("/ready") for _ in range(300)))
        assert {response.status_code for response in responses} == {200}
        assert len(served.router.calls) == 1

    asyncio.run(run())


@pytest.mark.parametrize(("error", "lasts_s"), [(None, GOOD_S), (RuntimeError("a secret"), BAD_S)])
def test_a_result_lasts_for_seconds_and_then_it_is_looked_again(error: Exception | None, lasts_s: float) -> None:
    async def run() -> None:
        check, clock = Check(error), Clock()
        readiness = Readiness({"weak": check}, clock)
        expected = {} if error is None else {"weak": "RuntimeError"}
        assert [await readiness.problems() for _ in range(3)] == [expected] * 3
        clock.now += lasts_s - 0.01
        await readiness.problems()
        assert check.num_calls == 1
        clock.now += 0.02
        await readiness.problems()
        assert check.num_calls == 2

    asyncio.run(run())


def test_a_client_that_leaves_does_not_end_the_look_of_the_others() -> None:
    async def run() -> None:
        check = Check()
        readiness = Readiness({"weak": check})
        first, second = (asyncio.create_task(readiness.problems()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == {}
        assert check.num_calls == 1

    asyncio.run(run())


def test_a_model_that_cannot_chat_says_so() -> None:
    async def run() -> None:
        readiness = Readiness({"weak": Check(NotReady("no chat: its tokenizer has no chat template"))})
        assert await readiness.problems() == {"weak": "no chat: its tokenizer has no chat template"}

    asyncio.run(run())
