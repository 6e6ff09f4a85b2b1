"""How many requests are let in at once, and that their places come back whatever becomes of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from callers import ALICE, BOB, CHAT, KEYS, bearer, error_of, hanging
from gateway_fakes import Fakes


def assert_too_many(response: httpx.Response, field: str) -> None:
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    error = error_of(response)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert field in error["message"]


def test_requests_beyond_max_in_flight_are_refused_whoever_asks_and_probes_are_not() -> None:
    async def check() -> None:
        fakes = Fakes(api_keys=KEYS, max_in_flight=2)
        async with fakes.client() as client:
            async with hanging(fakes, client, [ALICE, BOB]):
                for path in ("chat/completions", "completions", "route"):
                    response = await client.post(f"/v1/{path}", json=CHAT, headers=bearer(ALICE))
                    assert_too_many(response, "serving.max_in_flight)")
                assert (await client.post("/v1/route", json=CHAT)).status_code == 401  # first who, then how much
                for path in ("/health", "/ready", "/v1/models", "/stats"):
                    assert (await client.get(path, headers=bearer(ALICE))).status_code == 200
            assert (await client.post("/v1/route", json=CHAT, headers=bearer(ALICE))).status_code == 200
        assert fakes.refused == [429] * 3 + [401]

    asyncio.run(check())


def test_one_key_cannot_take_the_places_of_another() -> None:
    async def check() -> None:
        fakes = Fakes(api_keys=KEYS, max_in_flight=3, max_in_flight_per_key=2)
        async with fakes.client() as client:
            async with hanging(fakes, client, [ALICE, ALICE]):
                refused = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
                assert_too_many(refused, "serving.max_in_flight_per_key")
                assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(BOB))).status_code == 200
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))).status_code == 200

    asyncio.run(check())


def test_without_keys_only_the_whole_is_limited() -> None:
    async def check() -> None:
        fakes = Fakes(max_in_flight=2, max_in_flight_per_key=1)
        async with fakes.client() as client:
            async with hanging(fakes, client, ["a", "a"]):
                assert_too_many(await client.post("/v1/route", json=CHAT), "serving.max_in_flight)")

    asyncio.run(check())


def failing(fakes: Fakes) -> None:
    fakes.weak.why = fakes.strong.why = "dead"


def raising(fakes: Fakes) -> None:
    async def ask(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("unexpected")

    fakes.weak.ask = ask  # type: ignore[method-assign]


def breaking(fakes: Fakes) -> None:
    fakes.weak.breaks_after = 1


@pytest.mark.parametrize(
    ("prepare", "options", "status"),
    [
        (None, {}, 200),
        (None, {"stream": True}, 200),
        (None, {"model": "gpt-4"}, 404),
        (None, {"messages": 7}, 400),
        (failing, {}, 503),
        (raising, {}, 500),
        (breaking, {"stream": True}, 200),
    ],
)
def test_a_place_comes_back_whatever_became_of_the_request(
    prepare: Callable[[Fakes], None] | None, options: dict[str, Any], status: int
) -> None:
    fakes = Fakes(max_in_flight=1)
    if prepare is not None:
        prepare(fakes)
    for _ in range(3):
        assert fakes.post("/v1/chat/completions", {**CHAT, **options}).status_code == status


def test_refused_bodies_give_their_places_back() -> None:
    fakes = Fakes(max_in_flight=1, max_body_mib=1 / 1024)
    for _ in range(3):
        assert fakes.chat("x" * 1024).status_code == 413
    assert fakes.chat().status_code == 200
