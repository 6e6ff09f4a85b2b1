"""Odd answers of OpenAI-compatible servers: the text, or that query's error; never the end of a batch."""

import asyncio
import json
import math
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.http_answers import (
    CompletionError,
    answer_of,
    completions_of,
    first_token_margin,
    retry_after_s,
    usage_of,
)
from firewall_ray.engines.openai import OpenAISampler
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.errors import EngineDied

SPEC = SamplingSpec(num_samples=2, temperature=1.0, top_p=1.0, seed=0, stop={"t": ()}, max_tokens={"t": 5})


def sample(answer: Any, num_queries: int = 3, api: str = "chat", status: int = 200) -> list[dict[str, Any]]:
    """Rows of queries that are all answered with the same JSON (or bytes), however many choices were asked for."""
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content)

    config = OpenAIModelConfig.model_validate(
        {"engine": "openai", "base_url": "http://x/v1", "model": "id", "api": api, "max_attempts": 1}
    )
    sampler = OpenAISampler("m", config, SPEC)
    sampler._server.client = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    ids = [f"q{i}" for i in range(num_queries)]
    batch = pa.table({"query_id": ids, "task": ["t"] * num_queries, "prompt": ["p"] * num_queries})

    async def run() -> list[dict[str, Any]]:
        return [row async for table in sampler(batch) for row in table.to_pylist()]

    rows = asyncio.run(run())
    assert [row["query_id"] for row in rows] == ids
    for row in rows:
        assert row["error"] is not None or len(row["texts"]) == SPEC.num_samples
    return rows


def said(content: Any, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **choice}]}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
        (said([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"]), "ab"),
        (said([]), ""),
        (said({"type": "text", "text": "a"}), "a"),
        (said(None), ""),
        (said("a", finish_reason=None), "a"),
        (said("a", finish_reason={"type": "stop"}), "a"),
        (said("half a \ud83d pair"), "half a \ufffd pair"),
        ({"choices": [{"message": {"reasoning_content": "hm"}}]}, ""),
        ({"choices": [{"message": {"content": "a", "reasoning_content": "hm"}}], "error": None}, "a"),
        ({"choices": [{"message": None, "text": "a"}]}, "a"),
        *(({**said("a"), "usage": usage}, "a") for usage in (None, [], "7", {"prompt_tokens": "x", "completion_tokens": -1})),
        *(({**said("a"), "usage": {"prompt_tokens": count}}, "a") for count in (2**40, -3, 1.5, math.nan, True, {})),
        *((said("a", logprobs=logprobs), "a") for logprobs in ({}, [], 7, "x", {"content": [{}]}, {"content": {"a": 1}})),
    ],
)
def test_an_odd_answer_with_a_text_gives_the_text(answer: Any, text: str) -> None:
    for row in sample(answer):
        assert row["error"] is None
        assert (row["texts"], row["greedy_text"], row["greedy_margin"]) == ([text] * 2, text, None)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": None}]},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"message": {"role": "assistant"}}]},
        *(said(content) for content in (7, True, [7], [{"type": "text", "text": None}], {"type": "text"})),
        *({"choices": choices} for choices in (None, {}, "a", [None], ["a"], [[]], [7], 7)),
        *(json.dumps(value).encode() for value in (None, 7, "text", [], [said("a")], True)),
        *(b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"choices": [', b"9" * 10_000),
        {"error": {"message": "our provider is down"}},
        {"error": "no", **said("a")},
        {"choices": [{"message": {"content": ""}, "error": {"code": 599, "message": "no"}}]},
    ],
)
def test_an_odd_answer_without_a_text_is_that_querys_error(answer: Any) -> None:
    for row in sample(answer):
        assert row["error"]
        assert row["texts"] is None


def test_an_error_object_inside_a_200_means_what_its_code_means() -> None:
    with pytest.raises(EngineDied, match=r"models\.m\.api_key_env: http://x/v1 refuses every request"):
        sample({"error": {"code": 401, "message": "who?"}})
    with pytest.raises(EngineDied, match="does not answer any more"):
        sample({"error": {"code": 429, "message": "later"}})


@pytest.mark.parametrize("code", ["04001", "4001", "0400" + "1" * 5_000, "٤٠١", 4e2, True, [401]])
def test_a_code_that_is_no_status_is_that_querys_error(code: Any) -> None:
    row, *_ = sample({"error": {"code": code, "message": "who?"}})
    assert "with an error" in row["error"]
    assert "a bug of ours" not in row["error"]


# Whatever a server sends ----------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["\ud83d", "text"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
KEYS = {
    "error": ("code", "message"),
    "usage": ("prompt_tokens", "completion_tokens"),
    "message": ("content", "reasoning_content", "text"),
    "logprobs": ("content", "top_logprobs", "tokens"),
}


def odd(keys: tuple[str, ...], parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return parts | st.dictionaries(st.sampled_from(keys), parts, max_size=3)


CONTENTS = JSON | st.lists(odd(("type", "text"), JSON), max_size=2)
TOPS = JSON | st.lists(odd(("logprob", "top_logprobs", "a", "b"), JSON | st.lists(odd(("logprob",), JSON), max_size=2)), max_size=2)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "text": JSON,
        "message": odd(KEYS["message"], CONTENTS),
        "logprobs": odd(KEYS["logprobs"], TOPS),
        "finish_reason": JSON,
    },
)
ANSWERS = JSON | st.fixed_dictionaries(
    {"choices": JSON | st.lists(CHOICES | JSON, max_size=3)}, optional={"usage": odd(KEYS["usage"], JSON), "error": st.none()}
)


@settings(max_examples=300)
@given(ANSWERS, st.sampled_from(["chat", "completions"]))
def test_whatever_json_comes_every_query_yields_one_row(answer: Any, api: str) -> None:
    sample(answer, num_queries=2, api=api)


@settings(max_examples=100)
@given(JSON, st.sampled_from([400, 404, 418, 422, 500, 503]))
def test_whatever_a_refusal_says_it_is_rows_or_an_outage(answer: Any, status: int) -> None:
    try:
        rows = sample(answer, num_queries=2, status=status)
    except EngineDied:
        return
    assert status in (400, 422, 500)
    assert all(row["error"] for row in rows)


# Parts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logprobs", "margin"),
    [
        ({"content": [{"top_logprobs": [{"logprob": math.log(0.5)}, {"logprob": math.log(0.2)}]}]}, 0.3),
        ({"top_logprobs": [{"a": math.log(0.2), "b": math.log(0.5), "c": -math.inf}]}, 0.3),
        ({"top_logprobs": [{"a": 0.0}]}, 1.0),  # a certain token leaves the second nothing
        ({"top_logprobs": [{"a": math.log(0.5)}]}, None),  # what the second had is unknown
        ({"content": [{"logprob": -0.1}]}, None),
        ({"content": [{"logprob": -0.1, "top_logprobs": None}]}, None),
        ({"content": None}, None),
        ({"top_logprobs": None}, None),
        ({"top_logprobs": [None]}, None),
        ({"top_logprobs": [{"a": None, "b": -1.0}]}, None),
        ({"top_logprobs": [{"a": math.nan, "b": -1.0}]}, None),
        ({"top_logprobs": [{"a": 1e9, "b": -1.0}]}, None),
        ({"top_logprobs": [{"a": "-0.1", "b": True}]}, None),
        (None, None),
    ],
)
def test_logprobs_that_are_missing_null_or_odd_give_no_margin(logprobs: Any, margin: float | None) -> None:
    found = first_token_margin({"choices": [{"logprobs": logprobs}]})
    assert found == (None if margin is None else pytest.approx(margin))


@pytest.mark.parametrize(
    ("count", "found"),
    [(3, 3), (3.0, 3), ("3", 3), ("3.5", None), (-3, None), (2**31, None), (True, None), (math.inf, None), ("\u0663", None)],
)
def test_a_count_is_one_or_none(count: Any, found: int | None) -> None:
    assert usage_of({"usage": {"prompt_tokens": count}}, "prompt_tokens") == found


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        ("86400", 86_400.0),
        ("Thu, 01 Jan 2026 00:01:40 GMT", 100.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
    ]
    + [(odd, 0.0) for odd in ("", "soon", "nan", "inf", "-5", "1e999", "Thu, 01 Jan 99999 00:00:00 GMT")]
    + [(f"Wed, 21 Oct 2015 07:28:00 +{'9' * 20}", 0.0)],  # a zone that no timedelta holds
)
def test_retry_after_is_seconds_or_a_date_or_nothing(header: str, seconds: float) -> None:
    assert retry_after_s(header, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


def test_a_refusal_names_its_field_without_the_request_that_it_quotes() -> None:
    body = {"detail": [{"loc": ["body", "n"], "msg": "Extra inputs are not permitted", "input": {"prompt": "temperature"}}]}
    with pytest.raises(CompletionError) as refused:
        answer_of(httpx.Response(422, json=body, request=httpx.Request("POST", "http://x")))
    assert refused.value.words == "body n Extra inputs are not permitted"
    assert "temperature" in str(refused.value)


def test_completions_api_has_its_text_in_the_choice() -> None:
    (completion,) = completions_of({"choices": [{"text": "a"}], "usage": {"completion_tokens": 4}})
    assert (completion.text, completion.num_tokens, completion.finish_reason) == ("a", 4, None)
