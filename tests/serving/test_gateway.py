"""What becomes of a request when all goes well: its decision, its bytes, its headers, and what observers are told."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from gateway_fakes import FakeModel, FakeRouter, Fakes
from hypothesis import given
from hypothesis import strategies as st

from serve_app.models.answers import Answer, Endpoint

EASY, HARD = "What is 1 + 1?", "Prove it."
CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def fakes(**serving: Any) -> Fakes:
    """At the default strong fraction, 0.3, HARD goes strong and EASY weak."""
    return Fakes(FakeRouter({EASY: 0.75, HARD: 0.125}), **serving)


def firewall_headers(response: httpx.Response) -> dict[str, str]:
    return {name.removeprefix("x-firewall-"): value for name, value in response.headers.items() if name.startswith("x-firewall")}


# Decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "route", "model", "score"), [(EASY, "weak", "small", "0.75"), (HARD, "strong", "large", "0.125")])
def test_the_score_decides_and_the_headers_say_how(text: str, route: str, model: str, score: str) -> None:
    response = fakes().chat(text)
    assert (response.status_code, response.json()["model"]) == (200, model)
    assert firewall_headers(response) == {
        "route": route,
        "reason": "score",
        "score": score,
        "threshold": "0.3",
        "router": "v1",
        "truncated": "false",
        "decided": route,
    }


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("text", [EASY, HARD])
def test_a_stream_has_the_headers_of_the_whole_answer(text: str, streams: bool) -> None:
    response = fakes().chat(text, stream=streams)
    assert response.headers["content-type"] == ("text/event-stream; charset=utf-8" if streams else "application/json")
    assert firewall_headers(response) == firewall_headers(fakes().chat(text))


def test_the_name_and_the_header_set_the_fraction_of_one_request() -> None:
    served = fakes()
    assert served.chat(EASY, "firewall-0.8").headers["x-firewall-route"] == "strong"
    assert served.chat(HARD, "firewall-0.1").headers["x-firewall-route"] == "weak"
    assert served.chat(EASY, headers={"x-firewall-strong-fraction": "0.8"}).headers["x-firewall-threshold"] == "0.8"
    assert [fraction for _, fraction, _ in served.router.calls] == [0.8, 0.1, 0.8]
    refused = served.chat(EASY, headers={"x-firewall-strong-fraction": "80%"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-firewall-strong-fraction")


@pytest.mark.parametrize(("model", "route"), [("small", "weak"), ("large", "strong")])
def test_a_model_asked_for_by_its_id_answers_and_the_router_is_not_asked(model: str, route: str) -> None:
    served = fakes()
    response = served.chat(HARD, model)
    assert (response.json()["model"], firewall_headers(response)) == (model, {"route": route, "reason": "requested"})
    assert served.router.calls == []


@pytest.mark.parametrize("fail_open", ["weak", "strong"])
@pytest.mark.parametrize(
    ("router", "reason"),
    [(FakeRouter(error=RuntimeError("boom")), "router-failed"), (FakeRouter(delay_s=30), "router-timeout")],
)
def test_without_a_decision_the_fail_open_route_is_taken(fail_open: str, router: FakeRouter, reason: str) -> None:
    response = Fakes(router, fail_open=fail_open, router_timeout_s=0.01).chat(HARD)
    assert (response.status_code, firewall_headers(response)) == (200, {"route": fail_open, "reason": reason})


@pytest.mark.parametrize(("model", "route"), [("firewall-0", "weak"), ("firewall-1", "strong"), ("firewall-1.0", "strong")])
@pytest.mark.parametrize("fail_open", ["weak", "strong"])
def test_the_fractions_0_and_1_need_no_router(model: str, route: str, fail_open: str) -> None:
    served = fakes(fail_open=fail_open)
    served.router.error = RuntimeError()
    response = served.chat(HARD, model)
    threshold = "-inf" if route == "weak" else "inf"
    assert firewall_headers(response) == {"route": route, "reason": "fraction", "threshold": threshold}
    by_header = served.chat(HARD, headers={"x-firewall-strong-fraction": model.removeprefix("firewall-")})
    assert by_header.headers["x-firewall-route"] == route
    assert served.router.calls == []
    # Who asks for a decision gets the score with it; without a router the route all the same.
    assert served.post("/v1/route", {"model": model, "prompt": HARD}).json()["route"] == route
    served.router.error = None
    assert served.post("/v1/route", {"model": model, "prompt": HARD}).json()["score"] == 0.125
    assert fakes(shadow="weak").chat(HARD, model).headers["x-firewall-route"] == "weak"


@pytest.mark.parametrize(("num_prompts", "timeout_s"), [(1, 0.5), (40, 20.0), (200, 30.0)])
def test_a_batch_has_the_time_of_as_many_requests_up_to_that_of_an_answer(num_prompts: int, timeout_s: float) -> None:
    """On completions as on /v1/route."""
    served = fakes(router_timeout_s=0.5, answer_timeout_s=30)
    for path in ("/v1/completions", "/v1/route"):
        assert served.post(path, {"model": "firewall", "prompt": [EASY] * num_prompts}).status_code == 200
    assert served.router.timeouts == [timeout_s] * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("/v1/completions", {"prompt": [1, 2, 3]}),
        ("/v1/completions", {}),
    ],
)
def test_a_request_without_text_is_not_the_routers_business(path: str, body: dict[str, Any]) -> None:
    served = fakes(fail_open="strong")
    response = served.post(path, {"model": "firewall", **body})
    assert firewall_headers(response) == {"route": "strong", "reason": "no-text"}
    assert (served.router.calls, len(served.strong.bodies)) == ([], 1)


def test_a_prompt_is_read_as_it_is_and_the_question_of_a_chat_is_put_into_the_template() -> None:
    served = fakes()
    served.post("/v1/completions", {"model": "firewall", "prompt": f"Question: {EASY}\n"})
    served.chat(EASY)
    assert served.router.calls == [([f"Question: {EASY}\n"], None, False), ([EASY], None, True)]


def test_a_router_for_conversations_reads_all_that_was_said() -> None:
    served = fakes(chat_text="conversation")
    said = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    served.post("/v1/chat/completions", {"model": "firewall", "messages": said})
    assert served.router.calls == [(["a\nb\nc"], None, True)]


@pytest.mark.parametrize(("prompts", "route"), [([EASY, HARD], "strong"), ([EASY, EASY], "weak")])
def test_several_prompts_go_strong_together_when_one_of_them_does(prompts: list[str], route: str) -> None:
    response = fakes().post("/v1/completions", {"model": "firewall", "prompt": prompts})
    assert response.headers["x-firewall-route"] == route


# What reaches the model ----------------------------------------------------------------------------------------------

BODIES = [
    b'{"model":"firewall","messages":[{"role":"user","content":"\xc3\xa4\\u00e4\\ud83d\\ude00 \xe2\x80\xa8"}]}',
    b'  {"messages" : [ {"role":"user","content":"a"} ],\r\n "model":"firewall", "top_p": 1.00, "seed": 18446744073709551615}',
    b'{"model":"firewall","n":1,"n":2,"messages":[]}',
    *(
        json.dumps({"model": "firewall", "messages": [{"role": "user", "content": "a"}], **options}).encode()
        for options in (
            {
                "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
                "tool_choice": "none",
            },
            {"tool_choice": {"type": "function", "function": {"name": "look_up"}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"logprobs": True, "top_logprobs": 5, "n": 3, "stop": ["\n", "é"], "seed": 7, "logit_bias": {"5": -100}},
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": None, "stream_options": None, "metadata": {}, "not_known_yet": {"deep": [1, {"er": None}]}},
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, "text"]}]},
        )
    ),
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("model", ["weak", "strong"])
def test_a_model_gets_the_clients_bytes(body: bytes, model: str) -> None:
    served = fakes(fail_open=model)
    served.router.error = RuntimeError()
    assert served.post("/v1/chat/completions", body).status_code == 200
    assert getattr(served, model).bodies == [body]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), json_values), max_size=3),
    extra=st.dictionaries(st.text(max_size=8).filter(lambda name: name not in {"model", "messages", "stream"}), json_values),
    escaped=st.booleans(),
)
def test_whatever_else_a_client_says_reaches_the_model_untouched(messages: list[Any], extra: dict[str, Any], escaped: bool) -> None:
    served = fakes(sticky=True)
    body = json.dumps({"model": "firewall", "messages": messages, **extra}, ensure_ascii=escaped).encode()
    assert served.post("/v1/chat/completions", body).status_code == 200
    assert served.weak.bodies + served.strong.bodies == [body]


def test_a_refusal_of_the_model_is_handed_on_and_no_cause_for_the_other_model() -> None:
    class Refusing(FakeModel):
        async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
            return Answer(400, b'{"error": {"message": "too long"}}')

    served = Fakes(FakeRouter(), Refusing)
    for streams in (False, True):
        response = served.chat(EASY, stream=streams)
        assert (response.status_code, response.content) == (400, b'{"error": {"message": "too long"}}')
        assert response.headers["x-firewall-route"] == "weak"
    assert [exchange.status for exchange in served.recorder.exchanges] == [400, 400]


# The other endpoints -------------------------------------------------------------------------------------------------


def test_a_route_alone_asks_no_model_and_is_not_counted() -> None:
    served = fakes()
    answer = served.post("/v1/route", {"messages": [{"role": "user", "content": HARD}], "stream": True}).json()
    assert answer == {
        "route": "strong",
        "model": "large",
        "score": 0.125,
        "threshold": 0.3,
        "strong_fraction": 0.3,
        "reason": "score",
        "router": "v1",
        "truncated": False,
    }
    assert served.post("/v1/route", {"model": "small", "prompt": HARD}).json()["reason"] == "requested"
    assert (served.weak.bodies, served.strong.bodies, served.recorder.exchanges) == ([], [], [])


def test_a_batch_of_routes_is_one_decision_a_prompt_in_their_order() -> None:
    served = fakes()
    decisions = served.post("/v1/route", {"model": "firewall-0.5", "prompt": [HARD, EASY, HARD]}).json()["decisions"]
    assert [(decision["route"], decision["score"]) for decision in decisions] == [
        ("strong", 0.125),
        ("weak", 0.75),
        ("strong", 0.125),
    ]
    assert len(served.post("/v1/route", {"prompt": [EASY]}).json()["decisions"]) == 1
    assert len(served.post("/v1/route", {"model": "large", "prompt": [EASY, HARD]}).json()["decisions"]) == 2


def test_a_batch_of_routes_has_the_time_of_as_many_requests() -> None:
    served = Fakes(FakeRouter(delay_s=0.5), router_timeout_s=0.25)
    assert served.post("/v1/route", {"prompt": EASY}).json()["reason"] == "router-timeout"
    batch = served.post("/v1/route", {"prompt": [EASY] * 200}).json()["decisions"]
    assert {decision["reason"] for decision in batch} == {"score"}


@pytest.mark.parametrize("body", [{}, {"messages": [], "prompt": "x"}, {"messages": None, "prompt": None}])
def test_a_route_of_nothing_or_of_both_is_refused(body: dict[str, Any]) -> None:
    response = fakes().post("/v1/route", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


def test_ready_means_that_router_and_models_answer() -> None:
    def ready(served: Fakes) -> httpx.Response:
        async def get() -> httpx.Response:
            async with served.client() as client:
                return await client.get("/ready")

        return asyncio.run(get())

    assert ready(fakes()).json() == {"status": "ready"}
    served = fakes()
    served.strong.why, served.router.error = "dead", RuntimeError("secret")
    response = ready(served)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert "retry-after" in response.headers
    message = response.json()["error"]["message"]
    assert [word in message for word in ("large", "router", "small", "secret")] == [True, True, False, False]


# What observers are told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
def test_observers_are_told_of_an_answer_once_and_in_full(streams: bool) -> None:
    served = fakes()
    served.chat(HARD, stream=streams, max_tokens=11)
    (exchange,) = served.recorder.exchanges
    assert (exchange.endpoint, exchange.streams, exchange.text, exchange.status) == ("chat", streams, HARD, 200)
    assert (exchange.answered_by, exchange.fallback, exchange.client_left) == ("strong", None, False)
    assert exchange.decision is not None
    assert (exchange.decision.route, exchange.decision.score) == ("strong", 0.125)
    assert exchange.usage is not None
    assert (exchange.usage.prompt_tokens, exchange.usage.completion_tokens) == (11, 3)  # the fake says max_tokens, and its words
    assert exchange.model_s == 0.01
    times = [exchange.router_s, exchange.first_byte_s, exchange.total_s]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]


def test_a_refusal_is_recorded_with_its_status() -> None:
    served = fakes()
    statuses = [
        served.chat(EASY, "gpt-4").status_code,
        served.post("/v1/chat/completions", b"{").status_code,
        served.post("/v1/chat/completions", {"model": "firewall", "messages": "x"}).status_code,
        served.chat(EASY, stream="yes").status_code,
    ]
    assert statuses == [exchange.status for exchange in served.recorder.exchanges] == [404, 400, 400, 400]
    assert [exchange.decision for exchange in served.recorder.exchanges] == [None] * 4


def test_a_fault_of_ours_is_a_500_without_its_words_and_recorded() -> None:
    class Broken(FakeModel):
        async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
            raise RuntimeError(f"cannot handle {body!r}")

    served = Fakes(FakeRouter(), Broken)
    response = served.chat(EASY)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert EASY not in response.text
    assert [exchange.status for exchange in served.recorder.exchanges] == [500]


# The official client -------------------------------------------------------------------------------------------------


def test_the_official_client_reads_a_stream_and_its_refusals() -> None:
    served = fakes()

    async def words() -> AsyncIterator[str]:
        async with served.client() as http_client:
            client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", max_retries=0, http_client=http_client)
            async for chunk in await client.completions.create(model="firewall", prompt=HARD, stream=True):
                yield chunk.choices[0].text
            with pytest.raises(openai.NotFoundError) as refused:
                await client.completions.create(model="gpt-4", prompt=HARD)
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")

    async def collected() -> list[str]:
        return [word async for word in words()]

    assert asyncio.run(collected()) == ["all", "of", "it"]
