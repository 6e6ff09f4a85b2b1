"""The HTTP engine against a server with faults on purpose. tests/pipeline has it against a real vLLM server."""

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.engines.openai import OpenAISampler, api_key, completions_of, first_token_margin
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.errors import ConfigError, EngineDied

SPEC = SamplingSpec(num_samples=4, temperature=0.7, top_p=0.9, seed=0, stop={"t": ("\n",)}, max_tokens={"t": 5})
Answer = tuple[int, dict[str, str], Any]


def completion(body: dict[str, Any]) -> Answer:
    choices = [{"text": f"s{i}", "finish_reason": "stop", "logprobs": None} for i in range(body["n"])]
    if body.get("logprobs"):
        choices[0]["logprobs"] = {"top_logprobs": [{"a": math.log(0.7), "b": math.log(0.2)}]}
    return 200, {}, {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2 * body["n"]}}


@dataclass
class FaultyServer:
    """Answers with what `behave(body, number of this request)` returns; counts what it saw."""

    behave: Callable[[dict[str, Any], int], Answer] = lambda body, number: completion(body)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    state, lock, at_once = FaultyServer(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                state.bodies.append({**body, "path": self.path})
                state.headers.append({key.lower(): value for key, value in self.headers.items()})
                at_once[0] += 1
                state.most_at_once = max(state.most_at_once, at_once[0])
                number = len(state.bodies)
            status, headers, answer = state.behave(body, number)
            with lock:
                at_once[0] -= 1
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # the client may have given up on this query
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # five is the default; what comes beyond it at once is refused by the kernel

    http = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()


def sample(
    server: FaultyServer,
    num_queries: int = 1,
    secret: str | None = None,
    spec: SamplingSpec = SPEC,
    progress: Any = None,
    **config: Any,
) -> list[dict[str, Any]]:
    model = OpenAIModelConfig(engine="openai", base_url=server.url, model="id", **config)
    sampler = OpenAISampler("m", model, spec, progress, secret)
    batch = pa.table(
        {
            "query_id": [f"q{i}" for i in range(num_queries)],
            "task": ["t"] * num_queries,
            "prompt": [f"Question: Q{i}\nAnswer: " for i in range(num_queries)],
            "question": [f"Q{i}" for i in range(num_queries)],
        }
    )

    async def run() -> list[dict[str, Any]]:
        return [row async for table in sampler(batch) for row in table.to_pylist()]

    return asyncio.run(run())


def asked(config: dict[str, Any]) -> SamplingSpec:
    model = OpenAIModelConfig.model_validate({"engine": "openai", "base_url": "http://127.0.0.1/v1", "model": "id", **config})
    return replace(SPEC, prompt=prompt_format("m", model))


def test_a_row_has_n_samples_the_greedy_answer_and_its_margin(server: FaultyServer) -> None:
    (row,) = sample(server)
    assert row["texts"] == ["s0", "s1", "s2", "s3"]
    assert row["greedy_text"] == "s0"
    assert row["greedy_margin"] == pytest.approx(0.7 - 0.2)
    assert (row["num_prompt_tokens"], row["error"]) == (3, None)
    assert row["num_generated_tokens"] == [None] * 4  # one usage for four choices does not say how long each was
    sampled, greedy = sorted(server.bodies, key=lambda body: -body["n"])
    assert (sampled["temperature"], sampled["top_p"], sampled["stop"], sampled["max_tokens"]) == (0.7, 0.9, ["\n"], 5)
    assert (greedy["temperature"], greedy["logprobs"], greedy["path"]) == (0.0, 2, "/v1/completions")


def test_a_server_without_n_is_asked_once_a_sample_and_counts_tokens(server: FaultyServer) -> None:
    (row,) = sample(server, supports_n=False)
    assert len(row["texts"]) == 4
    assert row["num_generated_tokens"] == [2] * 4
    assert [body["n"] for body in server.bodies] == [1] * 5


@pytest.mark.parametrize(("most", "asked"), [(1, [1, 4, 1, 1, 1]), (2, [1, 4, 2]), (3, [1, 4, 1])])
def test_a_server_that_ignores_n_or_bounds_it_is_asked_for_the_rest(server: FaultyServer, most: int, asked: list[int]) -> None:
    server.behave = lambda body, number: completion({**body, "n": min(most, body["n"])})
    rows = sample(server, num_queries=2)
    assert [len(row["texts"]) for row in rows] == [4, 4]
    assert [body["n"] for body in server.bodies][: len(asked)] == asked
    assert all(body["n"] <= most for body in server.bodies[2:])  # learnt at the first answer


def test_more_choices_than_asked_for_are_as_many_as_asked_for(server: FaultyServer) -> None:
    server.behave = lambda body, number: completion({**body, "n": body["n"] + 2})
    (row,) = sample(server)
    assert row["texts"] == ["s0", "s1", "s2", "s3"]


def test_passing_faults_are_tried_again_and_retry_after_is_kept(server: FaultyServer) -> None:
    server.behave = lambda body, number: (429, {"retry-after": "1"}, {}) if number <= 2 else completion(body)
    (row,) = sample(server)
    assert row["error"] is None
    assert len(server.bodies) == 4


def test_lasting_faults_become_error_rows_and_the_others_go_on(server: FaultyServer) -> None:
    server.behave = lambda body, number: (400, {}, {"error": "no"}) if "Q1" in body["prompt"] else completion(body)
    rows = sample(server, num_queries=3)
    (failed,) = [row for row in rows if row["error"]]
    assert failed["query_id"] == "q1"
    assert "HTTP 400" in failed["error"]
    assert len(server.bodies) == 5  # neither is that 400 tried again, nor are its samples asked for


def test_attempts_are_bounded(server: FaultyServer) -> None:
    server.behave = lambda body, number: (500, {}, {})
    (row,) = sample(server, max_attempts=2, max_concurrency=1)
    assert "HTTP 500" in row["error"]
    assert len(server.bodies) <= 4  # two attempts of each of the query's two requests


@pytest.mark.parametrize("answer", [b"<html>", {"choices": []}, {}, []])
def test_an_answer_that_is_not_a_completion_becomes_an_error_row(server: FaultyServer, answer: Any) -> None:
    server.behave = lambda body, number: (200, {}, answer)
    (row,) = sample(server)
    assert "not a completion" in row["error"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_takes_no_more_requests_ends_the_job_and_turns_no_row_into_an_error(
    server: FaultyServer, status: int
) -> None:
    server.behave = lambda body, number: completion(body) if number <= 2 else (status, {}, {})
    with pytest.raises(EngineDied, match=rf"models\.m\.base_url: .* does not answer any more: .*HTTP {status}"):
        sample(server, num_queries=3, max_attempts=2)


def test_a_refused_connection_ends_the_job() -> None:
    with pytest.raises(EngineDied, match="ConnectError"):
        sample(FaultyServer(url="http://127.0.0.1:9/v1"), max_attempts=1)


def test_an_answer_that_takes_too_long_is_that_querys_error(server: FaultyServer) -> None:
    def slow(body: dict[str, Any], number: int) -> Answer:
        threading.Event().wait(0.5 if number == 1 else 0)
        return completion(body)

    server.behave = slow
    rows = sample(server, num_queries=2, max_attempts=1, timeout_s=0.2)
    assert sorted(row["error"] is None for row in rows) == [False, True]


def test_requests_in_flight_are_bounded(server: FaultyServer) -> None:
    def slow(body: dict[str, Any], number: int) -> Answer:
        threading.Event().wait(0.02)
        return completion(body)

    server.behave = slow
    sample(server, num_queries=20, max_concurrency=3)
    assert server.most_at_once == 3


def test_chat_sends_one_user_message_and_reads_its_logprobs(server: FaultyServer) -> None:
    tops = [{"logprob": math.log(0.6)}, {"logprob": math.log(0.1)}]
    choice = {"message": {"content": "hi"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": tops}]}}
    server.behave = lambda body, number: (200, {}, {"choices": [choice] * body["n"]})
    (row,) = sample(server, spec=asked({"prompt": "chat"}), prompt="chat")
    assert row["texts"] == ["hi"] * 4
    assert row["greedy_margin"] == pytest.approx(0.5)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Q0"}]
    assert server.bodies[0]["path"] == "/v1/chat/completions"
    assert "chat_template_kwargs" not in server.bodies[0]


def test_a_chat_carries_the_system_prompt_and_the_template_s_settings(server: FaultyServer) -> None:
    said = {"api": "chat", "system_prompt": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    sample(server, spec=asked(said), **said)
    for body in server.bodies:
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q0"}]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_raw_prompt_goes_without_the_space_at_its_end_where_the_config_says_so(server: FaultyServer) -> None:
    """To a BPE tokenizer that space is a token of its own, and digits follow it: "1984", "1. A dog"."""
    sample(server, spec=asked({}))
    assert {body["prompt"] for body in server.bodies} == {"Question: Q0\nAnswer: "}
    server.bodies.clear()
    sample(server, spec=asked({"keep_trailing_space": False}), keep_trailing_space=False)
    assert {body["prompt"] for body in server.bodies} == {"Question: Q0\nAnswer:"}
    server.bodies.clear()
    # A server without /completions: the paper's prompt as a message, where the config asks for that.
    sample(server, spec=asked({"prompt": "raw", "api": "chat"}), prompt="raw", api="chat")
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Question: Q0\nAnswer: "}]


def test_the_key_goes_into_the_header_and_a_missing_one_is_named(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(server, secret="s3cret")
    assert server.headers[0]["authorization"] == "Bearer s3cret"
    config = OpenAIModelConfig(engine="openai", base_url=server.url, model="id", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        api_key("strong", config)
    monkeypatch.setenv("NO_SUCH_KEY", "k\n")  # as a Kubernetes secret made with echo has it
    assert api_key("strong", config) == "k"


def test_null_content_is_an_empty_text_and_a_missing_top2_is_no_margin() -> None:
    assert completions_of({"choices": [{"message": {"content": None}}]})[0].text == ""
    assert first_token_margin({"choices": [{"text": "", "logprobs": None}]}) is None
    assert first_token_margin({"choices": [{"text": "", "logprobs": {"content": []}}]}) is None
    assert first_token_margin({"choices": [{"text": "a", "logprobs": {"top_logprobs": [{"a": 0.0}]}}]}) == 1.0
