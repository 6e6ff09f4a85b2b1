"""What a server refuses, for a while or for good: learnt, waited for, or the end of the job before it is paid for."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pyarrow as pa
import pytest

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines import http_patience
from firewall_ray.engines.openai import OpenAISampler
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.errors import EngineDied

STOPS = ("A:", "B:", "C:", "D:", "E:", "F:")
SPEC = SamplingSpec(num_samples=3, temperature=1.0, top_p=1.0, seed=0, stop={"t": STOPS}, max_tokens={"t": 5})
Body = dict[str, Any]


class Server:
    """refuse: of a body, its refusal (status, JSON, headers), or None to answer. paid: the bodies that were answered."""

    def __init__(self, refuse: Callable[[Body], tuple[int, Any, dict[str, str]] | None]) -> None:
        self.refuse = refuse
        self.asked: list[Body] = []
        self.paid: list[Body] = []
        self.said: list[tuple[int, str]] = []

    def respond(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        if (refusal := self.refuse(body)) is not None:
            status, answer, headers = refusal
            return httpx.Response(status, json=answer, headers=headers)
        self.paid.append(body)
        logprobs = {"top_logprobs": [{"a": -0.1, "b": -3.0}]} if "logprobs" in body else None
        choice = {"text": "xE: y", "finish_reason": "length", "logprobs": logprobs}
        return httpx.Response(200, json={"choices": [choice] * body.get("n", 1)})

    def sample(self, num_queries: int = 4, spec: SamplingSpec = SPEC, secret: str | None = None, **config: Any) -> list[Body]:
        model = OpenAIModelConfig.model_validate({"engine": "openai", "base_url": "http://x/v1", "model": "id", **config})
        sampler = OpenAISampler("m", model, spec, None, secret)
        sampler._server.client = httpx.AsyncClient(
            transport=httpx.MockTransport(self.respond), headers=sampler._server.client.headers
        )
        sampler._report.warn = lambda line: self.said.append((logging.WARNING, line))  # type: ignore[method-assign]
        queries = {"query_id": [f"q{i}" for i in range(num_queries)], "task": ["t"] * num_queries, "prompt": ["p"] * num_queries}

        async def run() -> list[Body]:
            return [row async for table in sampler(pa.table(queries)) for row in table.to_pylist()]

        return asyncio.run(run())


def refusing(condition: Callable[[Body], bool], message: str, status: int = 400, **error: Any) -> Server:
    return Server(lambda body: (status, {"error": {"message": message, **error}}, {}) if condition(body) else None)


REFUSED = {
    "logprobs": (lambda b: "logprobs" in b, "'logprobs' is not supported with this model", "logprobs"),
    "max_tokens": (
        lambda b: "max_tokens" in b,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens",
    ),
    "more than 4 stops": (lambda b: len(b.get("stop", ())) > 4, "Invalid 'stop': array too long. Expected at most 4", "stop"),
    "any stop": (lambda b: "stop" in b, "Unsupported parameter: 'stop'", "stop"),
    "n": (lambda b: b.get("n", 1) > 1, "Invalid value: 'n' must be 1", "n"),
    "the field n": (lambda b: "n" in b, "Unrecognized request argument: n", "n"),
    "the pair": (lambda b: "temperature" in b and "top_p" in b, "`temperature` and `top_p` cannot both be specified", None),
}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("how", ["by its param", "by words", "silently"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_field_is_learnt_at_the_first_answer(kind: str, how: str, status: int) -> None:
    condition, message, param = REFUSED[kind]
    server = refusing(
        condition, "no" if how == "silently" else message, status, **({"param": param} if how == "by its param" else {})
    )
    rows = server.sample()
    assert [row["error"] for row in rows] == [None] * 4
    assert all(row["texts"] == ["x"] * 3 for row in rows)  # cut at the stop string, whether it was sent or not
    assert all((row["greedy_margin"] is None) == (kind == "logprobs") for row in rows)
    assert all("max_tokens" in body or "max_completion_tokens" in body for body in server.asked)
    refused = [number for number, body in enumerate(server.asked) if condition(body)]
    assert max(refused) < len(server.asked) - 3  # those of the first query alone
    assert any("refuses" in line or "gives 1 of n" in line for _, line in server.said)


def test_two_fields_that_are_refused_one_after_the_other_are_both_learnt() -> None:
    def refuse(body: Body) -> tuple[int, Any, dict[str, str]] | None:
        for name in ("max_tokens", "logprobs"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'", "param": name}}, {}
        return None

    rows = Server(refuse).sample()
    assert all(row["error"] is None and row["greedy_margin"] is None for row in rows)


def test_a_refusal_that_lists_the_fields_it_knows_costs_only_the_one_it_is_about() -> None:
    known = "Unknown field. Known are: model, prompt, max_tokens, stop, 'n', top_p, temperature"
    server = refusing(lambda body: "logprobs" in body, known)
    server.sample()
    assert server.paid[-1].keys() == {"model", "prompt", "max_tokens", "stop", "n", "top_p", "temperature"}


def test_a_prompt_that_is_too_long_costs_no_field() -> None:
    words = "'max_tokens' or 'max_completion_tokens' is too large: 5. This model's maximum context length is 4 tokens"
    server = Server(lambda body: (400, {"error": {"message": words}}, {}) if len(server.asked) == 1 else None)
    rows = server.sample()
    assert all("max_tokens" in body and "logprobs" in body for body in server.paid if body["temperature"] == 0)
    assert sum(row["error"] is not None for row in rows) <= 1


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"top_p": 0.9}])
def test_a_refused_temperature_that_decides_what_is_sampled_ends_the_job_and_says_what_to_change(
    sampling: dict[str, float],
) -> None:
    name = next(iter(sampling))
    server = refusing(lambda body: body.get(name, 1) not in (0, 1), f"Unsupported value: '{name}'", param=name)
    with pytest.raises(EngineDied, match=r"models\.m\.greedy: .*set sampling\.top_p or sampling\.temperature to 1"):
        server.sample(spec=SamplingSpec(**{**vars(SPEC), **sampling}))
    assert len(server.paid) == 1  # one greedy answer


def test_a_model_that_refuses_temperature_0_is_sampled_where_the_config_says_so() -> None:
    server = refusing(
        lambda body: "temperature" in body, "Unsupported value: 'temperature' does not support 0", param="temperature"
    )
    with pytest.raises(EngineDied, match=r"models\.m\.greedy: sampled"):
        server.sample()
    assert server.paid == []
    rows = server.sample(greedy="sampled")
    assert all(row["error"] is None and row["greedy_text"] == "x" and row["greedy_margin"] is None for row in rows)


@pytest.mark.parametrize(
    ("status", "error", "field"),
    [
        (401, {"message": "Incorrect API key provided"}, "api_key_env"),
        (402, {"message": "insufficient credits"}, "api_key_env"),
        (403, {"message": "forbidden"}, "api_key_env"),
        (403, {"message": "Project does not have access to model `id`", "code": "model_not_found"}, "model"),
        (404, {"message": "Not Found"}, "base_url"),
        (404, {"message": "The model `id` does not exist"}, "model"),
        (405, {"message": "Method Not Allowed"}, "base_url"),
        (410, {"message": "gone"}, "base_url"),
        (301, {}, "base_url"),
        (400, {"message": "API key not valid. Please pass a valid API key."}, "api_key_env"),
        (400, {"message": "invalid model ID"}, "model"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "api_key_env"),
    ],
)
@pytest.mark.parametrize("num_answered", [0, 9])
def test_what_would_hit_every_query_ends_the_job_and_marks_none_as_done(
    status: int, error: dict[str, str], field: str, num_answered: int
) -> None:
    if status == 400 and num_answered:
        pytest.skip("once a query was answered, both were right")
    server = Server(lambda body: (status, {"error": error}, {}) if len(server.asked) > num_answered else None)
    with pytest.raises(EngineDied, match=rf"models\.m\.{field}: http://x/v1 .*HTTP {status}"):
        server.sample(num_queries=40, max_concurrency=2)
    assert len(server.paid) == num_answered
    assert len(server.asked) <= num_answered + (2 if num_answered else 8)  # all others were never asked


def test_eight_queries_that_all_fail_alike_before_any_other_end_the_job() -> None:
    server = refusing(lambda body: True, "no")
    with pytest.raises(EngineDied, match=r"models\.m\.base_url: http://x/v1 failed 8 queries in a row alike: HTTP 400"):
        server.sample(num_queries=20)
    assert server.paid == []
    rows = refusing(lambda body: True, "no").sample(num_queries=7)
    assert all("HTTP 400" in row["error"] for row in rows)


def test_a_server_that_breaks_in_the_middle_ends_the_job() -> None:
    server = Server(lambda body: (500, {}, {}) if len(server.paid) >= 6 else None)
    with pytest.raises(EngineDied, match="failed 8 queries in a row alike: HTTP 500"):
        server.sample(num_queries=40, max_attempts=1)


def test_a_moderated_prompt_is_that_querys_error() -> None:
    flagged = {"message": "openai requires moderation. Your input was flagged", "code": 403}
    server = Server(lambda body: (403, {"error": flagged}, {}) if len(server.asked) == 1 else None)
    rows = server.sample()
    assert [row["error"] is None for row in rows] == [False, True, True, True]


@pytest.mark.parametrize("wait", ["86400", "1e9", "date"])
def test_an_absurd_retry_after_is_bounded_by_the_config_and_said(wait: str) -> None:
    header = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True) if wait == "date" else wait
    server = Server(lambda body: (429, {}, {"retry-after": header}) if len(server.asked) == 2 else None)
    started = asyncio.new_event_loop().time()
    rows = server.sample(max_wait_s=5.5)
    assert all(row["error"] is None for row in rows)
    assert 5.0 < asyncio.new_event_loop().time() - started < 60
    assert any("takes no requests now" in line and "max_wait_s allows 6" in line for _, line in server.said)
    assert any("answers again" in line for _, line in server.said)


def test_seconds_of_429_do_not_end_a_job_whose_outage_may_last_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty refusals in a row, where six tries were all."""
    monkeypatch.setattr(http_patience, "_backoff", lambda state: 0.0)
    server = Server(lambda body: (429, {}, {}) if 4 <= len(server.asked) < 44 else None)
    assert all(row["error"] is None for row in server.sample(max_concurrency=1))


def test_an_outage_that_lasts_longer_than_the_config_allows_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_patience, "_backoff", lambda state: 0.05)
    server = Server(lambda body: (503, {}, {}) if len(server.paid) >= 4 else None)
    with pytest.raises(EngineDied, match=r"models\.m\.base_url: http://x/v1 does not answer any more: HTTP 503"):
        server.sample(outage_s=0.5)


def test_a_key_that_a_server_repeats_is_never_told() -> None:
    server = refusing(lambda body: True, "wrong key s3cret-value", status=401)
    with pytest.raises(EngineDied) as died:
        server.sample(secret="s3cret-value")
    assert "s3cret" not in str(died.value)
    server = refusing(lambda body: True, "too long, s3cret-value")
    assert not any("s3cret" in row["error"] for row in server.sample(secret="s3cret-value"))


def test_a_key_that_no_header_can_hold_ends_the_job_without_being_told() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    config = OpenAIModelConfig(engine="openai", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="id")
    sampler = OpenAISampler("m", config, SPEC, None, "s3cret\n")

    async def run() -> None:
        async for _ in sampler(pa.table({"query_id": ["q"], "task": ["t"], "prompt": ["p"]})):
            pass

    with pytest.raises(EngineDied, match="api_key_env") as died:
        asyncio.run(run())
    listener.close()
    assert "s3cret" not in str(died.value)


def test_a_bug_of_ours_costs_one_row_and_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("firewall_ray.engines.openai.first_token_margin", lambda answer: 1 / 0)
    server = Server(lambda body: None)
    rows = server.sample(num_queries=1)
    assert "ZeroDivisionError" in rows[0]["error"]
    assert "bug" in server.said[-1][1]
    assert "Traceback" in caplog.text


def test_rows_and_requests_are_counted_as_they_are_answered_and_not_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall_ray.engines.report.EVERY_S", 0.0)
    told: list[dict[str, float]] = []
    monkeypatch.setattr("firewall_ray.engines.report.EngineReport.add", lambda self, amounts, **_: told.append(dict(amounts)))
    server = Server(lambda body: None)
    server.sample(num_queries=4, spec=SPEC)
    assert sum(amounts.get("rows", 0) for amounts in told) == 4
    assert sum(amounts.get("work", 0) for amounts in told) == pytest.approx(4)
    first_row = next(number for number, amounts in enumerate(told) if amounts.get("rows"))
    assert sum(amounts.get("work", 0) for amounts in told[:first_row]) == pytest.approx(1)  # one query alone, then the others
