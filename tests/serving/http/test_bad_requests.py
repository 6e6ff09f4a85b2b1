"""What clients get wrong: refused with the right 4xx in OpenAI's shape, and the next good request is answered.

What only a model can judge (messages, sampling parameters) is in test_app.py, on running engines.
"""

import asyncio
import json
from typing import Annotated, Any

import httpx
import pytest
from gateway_fakes import Fakes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from serve_app.api_keys import make_key
from serve_app.errors import first_problem
from serve_app.models.answers import Endpoint

MESSAGES = [{"role": "user", "content": "Why?"}]
CHAT: dict[str, Any] = {"model": "firewall", "messages": MESSAGES}
PROMPT: dict[str, Any] = {"model": "firewall", "prompt": "Why?"}
KEY, KEY_CONFIG = make_key("alice")

WRONG_MODELS = ["gpt-4", "", "Firewall", "firewall-1.5", "firewall-x", "firewall--1", "firewall-nan", "small ", "a" * 100_000, "\0"]
WRONG_TYPES: list[Any] = [7, 1.5, True, [], ["firewall"], {}, {"id": "firewall"}]
NOT_JSON = [
    *(b"", b" ", b"{", b'{"model": "firewall", "mess', b"{} {}", b"{'model': 'firewall'}", b"<xml/>", b"model=firewall", b"\0"),
    *(
        b'{"model": "firewall", "messages": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf",
        '{"a": 1}'.encode("utf-16"),
    ),
    *(rb'{"prompt": "\ud800"}', rb'{"prompt": "\udc00\ud800"}', rb'{"prompt": "\x"}', b'{"prompt": "a\nb"}', b'{"prompt": "\0"}'),
    *(
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": -Infinity}',
        b'{"n": 01}',
        b'{"n": .5}',
        b'{"n": 0x10}',
        b'{"n": ' + b"9" * 5_000 + b"}",
    ),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 1_000 + b"1" + b"}" * 1_000),
]
NOT_OBJECTS: list[Any] = [[], [1, 2], [CHAT], "firewall", 7, 1.5, True, None]


def assert_refused(fakes: Fakes, response: httpx.Response, status: int) -> dict[str, Any]:
    """The error; and that the server is as before."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 1_000
    assert error["type"] in ("invalid_request_error", "authentication_error")
    assert fakes.weak.bodies == fakes.strong.bodies == []
    assert fakes.chat(headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    return error


@pytest.mark.parametrize("path", ["chat/completions", "completions", "route"])
@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json_is_a_400(path: str, body: bytes) -> None:
    fakes = Fakes()
    assert assert_refused(fakes, fakes.post(f"/v1/{path}", body), 400)["code"] == "json_invalid"


@pytest.mark.parametrize("path", ["chat/completions", "completions", "route"])
@pytest.mark.parametrize("body", NOT_OBJECTS)
def test_json_that_is_not_an_object_is_a_400(path: str, body: Any) -> None:
    fakes = Fakes()
    assert_refused(fakes, fakes.post(f"/v1/{path}", body), 400)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "route"])
@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1" + b"0" * 400 + b".0"])
def test_a_number_beyond_floating_point_is_a_400(path: str, number: bytes) -> None:
    """The parser reads infinity, which is no JSON and which no sampling parameter may be."""
    fakes = Fakes()
    body = b'{"model": "firewall", "messages": [], "prompt": null, "temperature": ' + number + b"}"
    assert assert_refused(fakes, fakes.post(f"/v1/{path}", body), 400)["code"] == "json_invalid"


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", PROMPT), ("route", CHAT)])
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        *((model, 404, "model_not_found") for model in WRONG_MODELS),
        *((model, 400, "invalid_type") for model in WRONG_TYPES),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_model_that_does_not_exist_is_a_404_and_no_name_a_400(
    path: str, body: dict[str, Any], model: Any, status: int, code: str
) -> None:
    fakes = Fakes()
    error = assert_refused(fakes, fakes.post(f"/v1/{path}", {**body, "model": model}), status)
    assert (error["param"], error["code"]) == ("model", code)
    assert all(name in error["message"] for name in ("firewall", "small", "large"))


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", PROMPT)])
def test_without_a_model_the_answer_names_those_there_are(path: str, body: dict[str, Any]) -> None:
    fakes = Fakes()
    for body_ in ({**body, "model": None}, {key: value for key, value in body.items() if key != "model"}):
        assert assert_refused(fakes, fakes.post(f"/v1/{path}", body_), 400)["code"] == "missing_model"
        fakes.weak.bodies.clear()


@pytest.mark.parametrize("given", ["1.5", "-0.1", "nan", "inf", "1e-1", "half", "", "0,5", "0.3 0.4", "+0.3", "9" * 5_000])
def test_a_fraction_in_the_header_that_is_none_is_a_400(given: str) -> None:
    fakes = Fakes()
    error = assert_refused(fakes, fakes.chat(headers={"x-firewall-strong-fraction": given}), 400)
    assert error["param"] == "x-firewall-strong-fraction"


@pytest.mark.parametrize("path", ["chat/completions", "route"])
@pytest.mark.parametrize("messages", ["hello", 7, 1.5, True, {}, {"role": "user"}])
def test_messages_that_are_no_list_are_a_400(path: str, messages: Any) -> None:
    fakes = Fakes()
    error = assert_refused(fakes, fakes.post(f"/v1/{path}", {**CHAT, "messages": messages}), 400)
    assert (error["param"], error["code"]) == ("messages", "invalid_type")


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", PROMPT)])
@pytest.mark.parametrize("stream", ["yes", "true", "", 0, 1, [], {}])
def test_stream_is_true_or_false(path: str, body: dict[str, Any], stream: Any) -> None:
    fakes = Fakes()
    assert assert_refused(fakes, fakes.post(f"/v1/{path}", {**body, "stream": stream}), 400)["param"] == "stream"


@pytest.mark.parametrize(
    "body", [{}, {"model": "firewall"}, {"messages": None, "prompt": None}, {"messages": MESSAGES, "prompt": "Why?"}]
)
def test_a_route_needs_messages_or_a_prompt_and_not_both(body: dict[str, Any]) -> None:
    fakes = Fakes()
    assert_refused(fakes, fakes.post("/v1/route", body), 400)


@pytest.mark.parametrize(
    "prompt", [7, 1.5, True, {}, {"a": 1}, [], ["a", 1], [None], [["a"]], [1, 2], [[1], [2]], [-1], [1.5], [[]]]
)
def test_a_route_of_what_is_no_prompt_is_a_400(prompt: Any) -> None:
    fakes = Fakes()
    assert assert_refused(fakes, fakes.post("/v1/route", {"prompt": prompt}), 400)["param"] == "prompt"


@pytest.mark.parametrize("path", ["completions", "route"])
def test_a_request_cannot_keep_the_router_busy_with_millions_of_texts(path: str) -> None:
    fakes = Fakes()
    error = assert_refused(fakes, fakes.post(f"/v1/{path}", {**PROMPT, "prompt": ["a"] * 2_049}), 400)
    assert error["param"] == "prompt"
    assert fakes.post("/v1/route", {**PROMPT, "prompt": ["a"] * 2_048}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(
            (method, "/v1/chat/completions", 405)
            for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
        ),
        *(("GET", "/v1/completions", 405), ("GET", "/v1/route", 405), ("POST", "/v1/models", 405), ("POST", "/health", 405)),
        *(
            ("POST", "/v1/elsewhere", 404),
            ("GET", "/v1", 404),
            ("POST", "/chat/completions", 404),
            ("GET", "/v1/models/gpt-4", 404),
        ),
        *(("GET", "/v1/models/firewall/7", 404), ("GET", "/v1/models/%00", 404), ("GET", "/v1/models/%ff%fe", 404)),
        *(("GET", "/" + "a" * 10_000, 404), ("GET", "/v1/models/" + "a" * 10_000, 404), ("GET", "/..%2f..%2fetc/passwd", 404)),
    ],
)
def test_paths_and_methods_that_do_not_exist(method: str, path: str, status: int) -> None:
    fakes = Fakes()

    async def send() -> httpx.Response:
        async with fakes.client() as client:
            return await client.request(method, path)

    response = asyncio.run(send())
    if method == "HEAD":
        assert response.status_code == status
    else:
        assert_refused(fakes, response, status)
    if status == 405:
        assert response.headers["allow"]


def test_the_last_of_duplicate_keys_is_meant_by_everybody() -> None:
    """A gateway and a model that read different ones could be made to answer what was never decided."""
    fakes = Fakes()
    body = b'{"model": "gpt-4", "model": "large", "messages": 7, "messages": [{"role": "user", "content": "Why?"}]}'
    assert fakes.post("/v1/chat/completions", body).headers["x-firewall-route"] == "strong"
    assert json.loads(fakes.strong.bodies[0])["model"] == "large"


def test_a_problem_is_named_by_its_field_and_not_by_how_it_was_looked_for() -> None:
    class Message(BaseModel):
        content: str | list[int]

    class Body(BaseModel):
        messages: list[int | Message]

    with pytest.raises(ValidationError) as refused:
        Body.model_validate({"messages": [{"content": "secret"}, {"content": ["secret"]}]})
    # pydantic's own: messages.1.int, messages.1.Message.content.str, messages.1.Message.content.list[int].0
    message, code, param = first_problem(refused.value)
    assert (message, code, param) == ("messages.1: Input should be a valid integer", "int_type", "messages.1")


def test_five_stop_strings_are_too_many_and_not_of_a_wrong_type() -> None:
    class Body(BaseModel):
        stop: str | Annotated[list[str], Field(max_length=4)] | None = None

    problems = []
    for stop in (list("abcde"), 5):
        with pytest.raises(ValidationError) as refused:
            Body.model_validate({"stop": stop})
        problems.append(first_problem(refused.value))
    assert problems == [
        ("stop: List should have at most 4 items after validation, not 5", "too_long", "stop"),
        ("stop: Input should be a valid string", "string_type", "stop"),
    ]


def test_null_bytes_in_text_are_text() -> None:
    assert Fakes().chat("\0").status_code == 200


# Whatever else comes -------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
names = st.sampled_from(["role", "user", "content", "text", "type", "model", "firewall", "image_url", "tool_calls"])
anything = st.recursive(
    scalars | names, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=4), inner, max_size=4)
)
FIELDS = ["model", "messages", "prompt", "stream", "stream_options", "n", "max_tokens", "temperature", "stop", "tools", "user"]
bodies = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), anything),
    st.fixed_dictionaries(
        {"model": st.sampled_from(["firewall", "firewall-0.3", "small"])},
        optional={
            "messages": anything
            | st.lists(st.fixed_dictionaries({"role": st.just("user")}, optional={"content": anything}), max_size=3),
            "prompt": anything,
            "stream": st.none() | st.booleans(),
            "stream_options": anything,
        },
    ),
)
paths = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/route"])


def assert_answered(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@settings(max_examples=500)
@given(path=paths, body=bodies, sticky=st.booleans(), chat_text=st.sampled_from(["last_user", "conversation"]))
def test_no_json_is_a_500(path: str, body: dict[str, Any], sticky: bool, chat_text: str) -> None:
    fakes = Fakes(sticky=sticky, chat_text=chat_text)
    assert_answered(fakes.post(path, json.dumps(body).encode()))


@settings(max_examples=300)
@given(
    path=paths,
    body=st.binary(max_size=200)
    | bodies.map(json.dumps).flatmap(lambda text: st.sampled_from([text[:-1], text[1:], text * 2])).map(str.encode),
)
@example(path="/v1/route", body=b'{"prompt": ["a"], "model": "firewall-' + b"9" * 400 + b'"}')
def test_no_bytes_are_a_500(path: str, body: bytes) -> None:
    assert_answered(Fakes().post(path, body))


header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20).map(str.strip)


@given(
    value=header_text, header=st.sampled_from(["x-firewall-strong-fraction", "x-firewall-conversation", "content-type", "origin"])
)
def test_no_header_is_a_500(value: str, header: str) -> None:
    fakes = Fakes(sticky=True, api_keys=[KEY_CONFIG.model_dump()])
    headers = {header.encode(): value.encode("latin-1"), b"authorization": f"Bearer {KEY}".encode()}
    response = fakes.chat(headers=headers)  # type: ignore[arg-type]
    assert_answered(response)


# vLLM's request types, which every model replica reads bodies into ---------------------------------------------------

WRONG = [None, 7, 1.5, True, "x", [], {}, [None], [1], ["a"], [[]], [{}], {"a": 1}, [{"type": 1}], [{"role": 1}]]


@pytest.mark.slow  # importing ray.serve.llm loads vLLM
@pytest.mark.parametrize(("endpoint", "body"), [("chat", CHAT), ("completions", PROMPT)])
def test_no_wrong_type_of_any_field_breaks_the_model_server(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Checks of vLLM's that come before those of types take them for right: `messages` null is a TypeError there, and would
    be a model that failed, and the other one asked.
    """
    from serve_app.models.replica import CLIENT_ERRORS, REQUEST_TYPES, WrongTypes, request_of

    tripped = set()
    for field in REQUEST_TYPES[endpoint].model_fields:
        for value in WRONG:
            try:
                request_of(endpoint, {**body, field: value})
            except WrongTypes:
                tripped.add(field)
            except CLIENT_ERRORS:
                pass
    assert tripped  # else `WrongTypes` can go
