"""What a collector is sent of a request: spans of one trace, its decision and its model, and never a word of the prompt."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_fakes import IDS, FakeModel, FakeRouter, Fakes
from openai_server import MODEL, USAGE, OpenAIServer, openai_server, refusal
from otlp_collector import PARENT, TRACE, TRACEPARENT, Collector, collected, over_grpc
from starlette.responses import Response

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.errors import ConfigError
from firewall_ray.tasks.base import prompt_id
from serve_app import otlp
from serve_app.models.answers import Answer, Endpoint, ModelUnavailable, StreamPart, Usage, WholeAnswer
from serve_app.models.remote import RemoteModel
from serve_app.models.spans import AnswerSpans
from serve_app.models.traced import TracedModel
from serve_app.recording.spans import NUMBERS
from serve_app.serve_settings import REPLICA_SETTINGS, replica_environment
from serve_app.tracing import CURRENT, Tracing, recorded_headers

CANARY = "Zyxwvutopia"
PRICE = {"prompt": 2.0, "completion": 8.0}  # dollars per million tokens


# The request's own span ----------------------------------------------------------------------------------------------


def test_a_chat_is_one_span_of_the_clients_trace_with_its_decision_and_its_answer(collector: Collector) -> None:
    def ask(tracing: Tracing) -> httpx.Response:
        fakes = Fakes(FakeRouter({CANARY: 0.75}), tracing=tracing, prices={"weak": PRICE, "strong": PRICE})
        asked = {"max_tokens": 11, "temperature": 0.5, "stop": [CANARY], "seed": 2**64, "top_p": True}
        return fakes.chat(CANARY, "firewall-0.5", {"traceparent": TRACEPARENT, "x-request-id": "req-1"}, **asked)

    response = collected(ask)
    assert response.status_code == 200
    (span,) = collector.spans
    assert (span.name, span.kind, span.trace_id, span.parent) == ("POST /v1/chat/completions", "SERVER", TRACE, PARENT)
    assert not span.is_error
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "firewall-ray",
        "gen_ai.request.model": "firewall-0.5",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 11,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "small",
        "gen_ai.usage.input_tokens": 11,  # the fake says max_tokens, and its words
        "gen_ai.usage.output_tokens": 3,
        "firewall.request_id": "req-1",
        "firewall.route": "weak",
        "firewall.model": "small",
        "firewall.alternative_model": "large",
        "firewall.decided": "weak",
        "firewall.reason": "score",
        "firewall.score": 0.75,
        "firewall.threshold": 0.5,
        "firewall.strong_fraction": 0.5,
        "firewall.router_version": "v1",
        "firewall.truncated": False,
        "firewall.answered_by": "weak",
        "firewall.cost_usd": pytest.approx((11 * 2 + 3 * 8) / 1e6),
    }
    assert not [raw for raw in collector.raw if CANARY.encode() in raw or prompt_id(CANARY).encode() in raw]
    began, ended = span.times
    assert began < ended


def test_a_stream_ends_its_span_with_its_last_byte_and_says_what_it_used(collector: Collector) -> None:
    collected(lambda tracing: Fakes(tracing=tracing).chat(stream=True))
    (span,) = collector.spans
    assert span.parent == ""  # no client's: a trace of its own
    assert (span.attributes["gen_ai.request.stream"], span.attributes["gen_ai.usage.output_tokens"]) == (True, 3)
    began, ended = span.times
    assert 0 < span.attributes["gen_ai.response.time_to_first_chunk"] * 1e9 < ended - began


def test_a_stream_that_breaks_is_an_error_though_its_status_was_200(collector: Collector) -> None:
    def ask(tracing: Tracing) -> httpx.Response:
        fakes = Fakes(tracing=tracing)
        fakes.weak.breaks_after = 1
        return fakes.chat(stream=True)

    collected(ask)
    (span,) = collector.spans
    assert span.is_error
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (200, "502")


def test_a_fallback_names_both_models(collector: Collector) -> None:
    def ask(tracing: Tracing) -> httpx.Response:
        fakes = Fakes(FakeRouter({"Why?": 0.1}), tracing=tracing)
        fakes.strong.why = "dead"
        return fakes.chat()

    collected(ask)
    found = collector.spans[0].attributes
    assert [found[f"firewall.{name}"] for name in ("route", "answered_by", "fallback")] == ["strong", "weak", "dead"]
    assert (found["firewall.alternative_model"], found["gen_ai.response.model"]) == ("small", "small")


@pytest.mark.parametrize(
    ("path", "body", "status", "name", "is_error"),
    [
        ("/v1/chat/completions", {"model": CANARY, "messages": []}, 404, "POST /v1/chat/completions", False),
        (f"/v1/{CANARY}", {}, 404, "POST", False),
        ("/v1/route", {"prompt": CANARY}, 200, "POST /v1/route", False),
        ("/v1/chat/completions", {"model": "large", "messages": []}, 500, "POST /v1/chat/completions", True),
    ],
)
def test_what_is_not_routed_is_told_by_its_status(
    collector: Collector, path: str, body: Any, status: int, name: str, is_error: bool
) -> None:
    """The client's own fault is no error of the server's, and what it asked for is no name."""

    class Broken(FakeModel):
        async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
            raise RuntimeError(CANARY)

    assert collected(lambda tracing: Fakes(model_type=Broken, tracing=tracing).post(path, body)).status_code == status
    (span,) = collector.spans
    assert (span.attributes["http.response.status_code"], span.is_error) == (status, is_error)
    assert CANARY.encode() not in collector.raw[0]
    assert span.name == name
    assert span.attributes.get("error.type") == ("RuntimeError" if is_error else None)


def test_who_has_no_key_makes_no_span(collector: Collector) -> None:
    from callers import ALICE, KEYS, bearer

    def ask(tracing: Tracing) -> list[int]:
        fakes = Fakes(api_keys=KEYS, tracing=tracing)
        return [fakes.chat(headers=headers).status_code for headers in ({"traceparent": TRACEPARENT}, bearer(ALICE))]

    assert collected(ask) == [401, 200]
    (span,) = collector.spans
    assert span.attributes["firewall.key"] == "alice"


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", TRACEPARENT.replace("-01", "-00-x"), "\xff" * 600])
def test_a_context_that_cannot_be_read_begins_a_trace(collector: Collector, given: str) -> None:
    answered = collected(lambda tracing: Fakes(tracing=tracing).chat(headers={"traceparent": given.encode("latin-1")}))
    assert answered.status_code == 200
    (span,) = collector.spans
    assert (span.trace_id != TRACE, span.parent) == (True, "")


# From process to process ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bought() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


def chat_bought(server: OpenAIServer, tracing: Tracing, **options: Any) -> httpx.Response:
    """The strong model is bought, and asked by its id."""
    server.seen.clear()

    async def ask() -> httpx.Response:
        fakes = Fakes(tracing=tracing)
        config = OpenAIModelConfig(engine="openai", base_url=server.url, model=MODEL)
        fakes.models["strong"] = TracedModel(RemoteModel(IDS["strong"], config, fakes.serving), config)
        async with fakes.client() as client:
            body = {"model": "large", "messages": [{"role": "user", "content": CANARY}], **options}
            sent = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "secret=1"}
            return await client.post("/v1/chat/completions", json=body, headers=sent)

    return asyncio.run(ask())


@pytest.mark.parametrize("streams", [False, True])
def test_a_bought_model_is_told_of_the_trace_and_its_call_is_a_clients_span(
    collector: Collector, bought: OpenAIServer, streams: bool
) -> None:
    assert collected(lambda tracing: chat_bought(bought, tracing, stream=streams)).status_code == 200
    request = collector.named("POST /v1/chat/completions")
    call = collector.named(f"chat {MODEL}")
    assert (call.kind, call.trace_id, call.parent) == ("CLIENT", TRACE, request.span_id)
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)/v1", bought.url).groups()  # type: ignore[union-attr]
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": USAGE["prompt_tokens"],
        "gen_ai.usage.output_tokens": USAGE["completion_tokens"],
        "server.address": host,
        "server.port": int(port),
    }
    ((_, headers, _),) = bought.seen
    assert headers["traceparent"] == f"00-{TRACE}-{call.span_id}-01"
    assert headers["tracestate"] == "vendor=1"
    assert "baggage" not in headers  # what others put into a request is not a provider's business
    assert CANARY.encode() not in b"".join(collector.raw)


def test_a_bought_model_that_fails_fails_its_span(collector: Collector, bought: OpenAIServer) -> None:
    async def overloaded(body: Any) -> Response:
        return refusal(529)

    bought.answer = overloaded
    try:
        assert collected(lambda tracing: chat_bought(bought, tracing)).status_code == 503
    finally:
        bought.answer = None
    call, request = collector.named(f"chat {MODEL}"), collector.named("POST /v1/chat/completions")
    assert (call.is_error, call.attributes["error.type"]) == (True, "overloaded")
    assert (request.is_error, request.attributes["error.type"]) == (True, "503")


USED = Usage(7, 3, cached_tokens=4, gpu_s=0.5)
ANSWERED = {
    "gen_ai.operation.name": "text_completion",
    "gen_ai.provider.name": "vllm",
    "gen_ai.request.model": "small",
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 3,
    "gen_ai.usage.cache_read.input_tokens": 4,
    "firewall.gpu_s": 0.5,
}


def test_an_answer_of_a_replica_is_a_child_of_its_request(collector: Collector) -> None:
    def answer(tracing: Tracing) -> None:
        spans = AnswerSpans(tracing, "small")
        with spans.answering("completions", {"traceparent": TRACEPARENT}) as told:
            told(WholeAnswer(200, CANARY.encode(), USED, 0.25))
        with spans.answering("completions", {"traceparent": TRACEPARENT}) as told:
            told(StreamPart(CANARY.encode(), model_s=0.25))
            told(StreamPart(b"", usage=USED))
        with spans.answering("completions", {"traceparent": TRACEPARENT}) as told:
            told(WholeAnswer(400, b"", None, 0.0))
        with pytest.raises(RuntimeError), spans.answering("completions", {"traceparent": TRACEPARENT}):
            raise RuntimeError(CANARY)
        with spans.answering("completions", None) as told:
            told(WholeAnswer(200, b"", USED, 0.25))

    collected(answer)
    assert {(span.name, span.kind, span.trace_id, span.parent) for span in collector.spans} == {
        ("text_completion small", "INTERNAL", TRACE, PARENT)
    }
    whole, streamed, refused, failed = collector.spans
    assert whole.attributes == ANSWERED
    assert streamed.attributes == {**ANSWERED, "gen_ai.response.time_to_first_chunk": 0.25}
    assert [(span.is_error, span.attributes["error.type"]) for span in (refused, failed)] == [(True, "400"), (True, "RuntimeError")]
    assert CANARY.encode() not in b"".join(collector.raw)


@pytest.mark.parametrize("streams", [False, True])
def test_a_replica_is_handed_the_trace_where_there_is_one_to_see(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    """Without tracing, and of a trace that the sampler left out, it gets what it always got."""
    from serve_app.models.client import DeployedModel

    class Handle:
        def __init__(self) -> None:
            self.answer = self.stream = self.decode = self
            self.calls: list[tuple[Any, ...]] = []

        def options(self, **_: Any) -> "Handle":
            return self

        def remote(self, *arguments: Any) -> Any:
            self.calls.append(arguments)

            async def whole() -> WholeAnswer:
                return WholeAnswer(200, b"{}", None, 0.0)

            async def parts() -> Any:
                yield StreamPart(b"", model_s=0.0)

            call: Any = parts() if streams else asyncio.ensure_future(whole())
            return _Cancellable(call) if streams else call

    class _Cancellable:
        def __init__(self, parts: Any) -> None:
            self._parts = parts

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            return await anext(self._parts)

        def cancel(self) -> None:
            pass

    async def chat(tracing: Tracing | None) -> tuple[Any, ...]:
        handle: Any = Handle()
        fakes = Fakes(tracing=tracing)
        fakes.models["weak"] = DeployedModel("small", handle, fakes.serving)  # type: ignore[assignment]
        async with fakes.client() as client:
            body = {"model": "small", "messages": [], "stream": streams}
            await client.post("/v1/chat/completions", json=body, headers={"traceparent": TRACEPARENT})
        (call,) = handle.calls
        return tuple(call[2:])

    (carrier,) = collected(lambda tracing: asyncio.run(chat(tracing)))
    assert carrier == {"traceparent": f"00-{TRACE}-{collector.spans[0].span_id}-01"}
    assert asyncio.run(chat(None)) == ()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert collected(lambda tracing: asyncio.run(chat(tracing))) == ()
    assert len(collector.spans) == 1


# The variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "no"}, True),
    ],
)
def test_it_is_on_where_a_collector_is_named(said: dict[str, str], is_on: bool) -> None:
    assert otlp.is_on(said) == is_on
    assert bool(otlp.passed_on(said)) == is_on


def test_replicas_get_the_drivers_variables_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replica_environment() == REPLICA_SETTINGS
    said = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "x"}
    for name, value in {**said, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret", "HOME": "/x"}.items():
        monkeypatch.setenv(name, value)
    assert replica_environment() == {**REPLICA_SETTINGS, **said, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}


def test_a_protocol_that_there_is_not_is_said_before_anything_is_deployed() -> None:
    with pytest.raises(ConfigError, match="http/json"):
        otlp.passed_on({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})


def test_spans_go_over_grpc_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with over_grpc() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
        collected(lambda tracing: Fakes(tracing=tracing).chat())
    assert collector.named("POST /v1/chat/completions").attributes["firewall.route"] == "weak"


def test_the_path_of_the_general_endpoint_is_completed_and_the_service_has_the_name_that_is_said(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resource() -> dict[str, Any]:
        collected(lambda tracing: Fakes(tracing=tracing).chat())
        return collector.spans[-1].resource

    ours = {"service.name": "firewall-ray", "service.instance.id": "ingress-1", "ray.serve.deployment": "Ingress"}
    assert resource().items() >= ours.items()
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=one,deployment.environment.name=test")
    assert resource().items() >= {**ours, "service.name": "one", "deployment.environment.name": "test"}.items()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "two")
    assert resource()["service.name"] == "two"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/elsewhere")
    resource()
    assert collector.paths == ["/v1/traces"] * 3 + ["/elsewhere"]


@pytest.mark.parametrize(("flags", "num_spans"), [("00", 0), ("01", 1)])
def test_a_client_that_left_its_trace_out_is_followed_unless_the_sampler_says_otherwise(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, flags: str, num_spans: int
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
    collected(lambda tracing: Fakes(tracing=tracing).chat(headers=headers))
    assert len(collector.spans) == num_spans
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    collected(lambda tracing: Fakes(tracing=tracing).chat(headers=headers))
    assert len(collector.spans) == num_spans + 1


def test_a_collector_that_is_not_there_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    assert collected(lambda tracing: Fakes(tracing=tracing).chat()).status_code == 200


# Off -----------------------------------------------------------------------------------------------------------------


def test_without_variables_nothing_of_opentelemetry_is_loaded_and_no_span_made() -> None:
    """Ray Serve loads the SDK for itself. So: what stands around our spans loads none of it where Ray is not, and the gateway no
    exporter.
    """
    code = """
import sys
import serve_app.serve_settings, serve_app.recording.spans, serve_app.models.spans, serve_app.routing.spans, serve_app.http.traced
from serve_app import otlp, tracing
assert otlp.replica_tracing() is None
assert tracing.recorded_headers() is None
serve_app.serve_settings.replica_environment()
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
sys.path.insert(0, "tests/serving")
from gateway_fakes import Fakes
assert Fakes().chat().status_code == 200
print(sorted(name for name in sys.modules if name.startswith("opentelemetry.exporter")))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n[]\n"), done.stderr


def test_outside_of_a_request_there_is_no_step() -> None:
    assert CURRENT.get() is None
    assert recorded_headers() is None
    Fakes().chat()
    assert CURRENT.get() is None


# Names ---------------------------------------------------------------------------------------------------------------


def test_the_attributes_are_those_of_the_conventions(collector: Collector, bought: OpenAIServer) -> None:
    """As the installed package lists them."""
    known = set()
    for module in ("_incubating.attributes.gen_ai_attributes", "attributes.http_attributes", "attributes.url_attributes"):
        spec = importlib.util.find_spec(f"opentelemetry.semconv.{module}")
        assert spec is not None
        assert spec.origin is not None
        with open(spec.origin) as source:
            known |= set(re.findall(r'^[A-Z_]+: Final = "([a-z_.]+)"$', source.read(), re.MULTILINE))
    known |= {"server.address", "server.port", "error.type"}
    collected(lambda tracing: chat_bought(bought, tracing, stream=True))
    said = {name for span in collector.spans for name in span.attributes} | set(NUMBERS.values()) | set(ANSWERED)
    assert {name for name in said if not name.startswith("firewall.")} <= known


# Who leaves ----------------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_a_bought_model_ends_the_span_without_blame(collector: Collector) -> None:
    class Hanging(FakeModel):
        async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
            await asyncio.sleep(3_600)
            raise ModelUnavailable("dead")

    async def leave(tracing: Tracing) -> None:
        config = OpenAIModelConfig(engine="openai", base_url="https://api.example.com/v1", model=MODEL)
        CURRENT.set(tracing.begin("request", {}, "SERVER"))
        asking = asyncio.create_task(TracedModel(Hanging("large"), config).ask("chat", b"{}", streams=False))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    collected(lambda tracing: asyncio.run(leave(tracing)))
    call = collector.named(f"chat {MODEL}")
    assert (call.is_error, call.attributes["server.address"]) == (False, "api.example.com")
    assert "server.port" not in call.attributes
