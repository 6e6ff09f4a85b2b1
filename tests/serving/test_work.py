"""How much may be asked for at once: answers and tokens count, not requests."""

import asyncio
from typing import Any

import pytest
from callers import ALICE, BOB, KEYS, bearer, error_of, hanging
from gateway_fakes import Fakes
from hypothesis import given
from hypothesis import strategies as st

from serve_app.work import UNSAID_TOKENS, work_of


@pytest.mark.parametrize(
    ("body", "work"),
    [
        ({}, (1, UNSAID_TOKENS)),
        ({"prompt": "a", "max_tokens": 7}, (1, 7)),
        ({"prompt": [5, 6, 7], "max_tokens": 7}, (1, 7)),  # token ids of one prompt
        ({"prompt": [[5, 6], [7]], "n": 3, "max_tokens": 2}, (6, 12)),
        ({"messages": [], "n": 2, "max_tokens": 5, "max_completion_tokens": 9}, (2, 18)),
        ({"n": "3", "max_tokens": 4.0}, (3, 12)),  # vLLM takes both for numbers
        ({"n": True, "max_tokens": None}, (1, UNSAID_TOKENS)),
        ({"n": -4, "max_tokens": "many"}, (1, 1)),
        ({"n": 2, "best_of": 8, "max_tokens": 1}, (8, 8)),
    ],
)
def test_the_work_of_a_body(body: dict[str, Any], work: tuple[int, int]) -> None:
    assert work_of(body) == work


@given(
    st.dictionaries(
        st.sampled_from(["n", "best_of", "max_tokens", "prompt"]), st.integers() | st.floats() | st.text() | st.lists(st.text())
    )
)
def test_any_body_has_some_work(body: dict[str, Any]) -> None:
    num_answers, tokens = work_of(body)
    assert num_answers >= 0
    assert tokens >= num_answers


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 9}, "n"),
        ({"prompt": ["a", "b", "c"], "n": 3}, "n"),
        ({"n": 10**400}, "n"),
        ({"n": 4, "max_tokens": 26}, "max_tokens"),
    ],
)
def test_a_request_for_too_much_is_refused_before_router_and_model(options: dict[str, Any], param: str) -> None:
    served = Fakes(max_answers=8, max_tokens=100)
    body = {"model": "firewall", "prompt": "Why?", "max_tokens": 5, **options}
    response = served.post("/v1/completions", body)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], f"serving.max_{'answers' if param == 'n' else 'tokens'}" in error["message"]) == (param, True)
    assert served.router.calls == served.weak.bodies == served.strong.bodies == []


def test_work_in_flight_is_limited_in_all_and_for_a_key_and_comes_back() -> None:
    async def check() -> None:
        chat = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}]}
        limits = {"max_tokens_in_flight": 3 * UNSAID_TOKENS, "max_tokens_in_flight_per_key": 2 * UNSAID_TOKENS}
        served = Fakes(api_keys=KEYS, **limits)

        async def status(key: str, **options: Any) -> int:
            response = await client.post("/v1/chat/completions", json={**chat, **options}, headers=bearer(key))
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) > 0
            return response.status_code

        async with served.client() as client:
            async with hanging(served, client, [ALICE, ALICE]):
                assert await status(ALICE, max_tokens=1) == 429  # its own limit
                assert await status(BOB, max_tokens=UNSAID_TOKENS + 1) == 429  # that of all
                assert await status(BOB, max_tokens=UNSAID_TOKENS, stream=True) == 200
                assert await status(BOB, n=2, max_tokens=UNSAID_TOKENS) == 429
                assert await status(BOB, max_tokens=UNSAID_TOKENS) == 200
            assert await status(ALICE, n=2) == 200
            assert await status(ALICE, n="x", model="gpt-4") == 404
            assert await status(ALICE, n=2) == 200

    asyncio.run(check())
