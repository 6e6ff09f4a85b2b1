"""OpenAI's Responses API on the gateway: its official client, whole and streamed, and what the model is asked."""

from typing import Any

import openai
import pytest
from chat_fakes import EASY, HARD, ChatFakes, call, events_of, firewall_headers
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from wire import on_the_wire

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "look_up", "description": "A fact.", "parameters": {"type": "object"}, "strict": True}
CALL = call("look_up", '{"of": "\u2028 Rome"}')


def body(said: Any = "Why?", **options: Any) -> dict[str, Any]:
    return {"model": "firewall", "input": said, **options}


def post(fakes: ChatFakes, asked: dict[str, Any]) -> Any:
    return fakes.post("/v1/responses", asked)


def client(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


# What the model is asked -----------------------------------------------------------------------------------------------


def asked_of_model(asked: dict[str, Any]) -> dict[str, Any]:
    fakes = ChatFakes()
    response = post(fakes, asked)
    assert response.status_code == 200, response.text
    return fakes.weak.asked


def test_a_conversation_becomes_the_same_chat() -> None:
    asked = body(
        instructions="Be brief.",
        said=[
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "look_up",
                "arguments": "{}",
                "status": "completed",
            },
            {"type": "function_call", "call_id": "call_2", "name": "look_up", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "A cat"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "A dog"}]},
            {"role": "assistant", "content": "Well."},
            {"role": "user", "content": "So?"},
        ],
        tools=[TOOL],
    )
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    assert asked_of_model(asked) == {
        "model": "firewall",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, url]},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [call("look_up", "{}", "call_1"), call("look_up", "{}", "call_2")],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "A cat"},
            {"role": "tool", "tool_call_id": "call_2", "content": "A dog"},
            {"role": "assistant", "content": "Well."},
            {"role": "user", "content": "So?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "look_up", "description": "A fact.", "parameters": {"type": "object"}, "strict": True},
            }
        ],
    }


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"reasoning": {"effort": "none", "summary": "auto"}}, {"reasoning_effort": "none"}),
        ({"user": "u", "metadata": {"a": "b"}}, {"user": "u"}),
        ({"store": False, "background": False, "truncation": "disabled", "include": ["reasoning.encrypted_content"]}, {}),
        ({"previous_response_id": None, "store": None, "prompt_cache_key": "k"}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
    ids=str,
)
def test_an_option_is_the_chats(option: dict[str, Any], expected: dict[str, Any]) -> None:
    assert asked_of_model(body(**option)) == {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}]} | expected


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include.0"),
        *(({"tools": [{"type": kind}]}, "tools.0.type") for kind in ("web_search", "file_search", "mcp", "custom", None)),
        ({"tool_choice": "maybe"}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "mcp", "server_label": "s"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input.0.type"),
        ({"input": [{"type": "computer_call_output"}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0.image_url"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"canary": "canary"}, "canary"),
    ],
    ids=str,
)
def test_what_no_chat_can_serve_is_a_400_that_names_the_field(wrong: dict[str, Any], field: str) -> None:
    fakes = ChatFakes()
    response = post(fakes, body() | wrong)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert error["message"].startswith(f"{field}: ")
    assert fakes.weak.bodies == fakes.router.calls == []
    assert [(each.endpoint, each.status) for each in fakes.recorder.exchanges] == [("responses", 400)]


@pytest.mark.parametrize(
    "wrong",
    [{"input": [{}] * 300_000}, {"input": [{str(i): i for i in range(300_000)}]}, {str(i): i for i in range(300_000)}],
    ids=["items", "fields of an item", "fields"],
)
def test_of_a_million_problems_one_is_named(wrong: dict[str, Any]) -> None:
    """pydantic would make a list of all: of these bodies, seconds and gigabytes."""
    response = post(ChatFakes(), body() | wrong)
    assert response.status_code == 400
    assert len(response.content) < 300


# Answers ---------------------------------------------------------------------------------------------------------------


def text_item(text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "role": "assistant", "status": status, "content": content}


def call_item(name: str, arguments: str, call_id: str = "call_1", status: str = "completed") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status}


ANSWERS: list[tuple[dict[str, Any], str, list[dict[str, Any]], str | None]] = [
    ({"content": "all of it"}, "stop", [text_item("all of it")], None),
    ({"content": "all of"}, "length", [text_item("all of", "incomplete")], "max_output_tokens"),
    ({"content": "Half"}, "content_filter", [text_item("Half", "incomplete")], "content_filter"),
    (
        {"reasoning": "Well\u2028.", "content": "So."},
        "stop",
        [
            {
                "type": "reasoning",
                "status": "completed",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Well\u2028."}],
            },
            text_item("So."),
        ],
        None,
    ),
    (
        {"content": "I look.", "tool_calls": [CALL, call("now", "", "call_2")]},
        "tool_calls",
        [text_item("I look."), call_item("look_up", '{"of": "\u2028 Rome"}'), call_item("now", "", "call_2")],
        None,
    ),
    (
        {"content": "a", "tool_calls": [call("f", '{"of')]},
        "length",
        [text_item("a"), call_item("f", '{"of', status="incomplete")],
        "max_output_tokens",
    ),
    (
        {"content": None, "refusal": "No."},
        "stop",
        [{"type": "message", "role": "assistant", "status": "completed", "content": [{"type": "refusal", "refusal": "No."}]}],
        None,
    ),
    ({"content": ""}, "stop", [text_item("")], None),
]


@pytest.mark.parametrize(("message", "finish_reason", "output", "cut_off"), ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_is_the_same_whole_and_streamed(
    message: dict[str, Any], finish_reason: str, output: list[dict[str, Any]], cut_off: str | None
) -> None:
    asked = body(instructions="Be brief.", metadata={"a": "b"}, tools=[TOOL], max_output_tokens=9, temperature=0.5)

    async def check(port: int) -> None:
        async with client(port) as asking:
            whole = await asking.responses.create(**asked)
            streamed = None
            async for event in await asking.responses.create(**asked, stream=True):
                if event.type in ("response.completed", "response.incomplete"):
                    streamed = event.response
        for answer in (whole, streamed):
            assert answer is not None
            said = answer.to_dict()
            assert [{name: value for name, value in item.items() if name != "id"} for item in said["output"]] == output  # type: ignore[attr-defined]
            assert (answer.status, answer.error) == ("completed" if cut_off is None else "incomplete", None)
            assert said["incomplete_details"] == (None if cut_off is None else {"reason": cut_off})
            assert (answer.model, answer.instructions, answer.metadata) == ("small", "Be brief.", {"a": "b"})
            assert (said["tools"], said["tool_choice"], said["store"]) == ([TOOL], "auto", False)
            assert (answer.max_output_tokens, answer.temperature, answer.previous_response_id) == (9, 0.5, None)
            assert said["usage"] == {
                "input_tokens": 12,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
                "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 17,
            }
        assert whole.output_text == (message.get("content") or "")

    on_the_wire(ChatFakes(message, finish_reason), check)


texts = st.one_of(st.none(), st.text(max_size=20))
calls = st.lists(st.builds(lambda of: call("f", f'{{"of": {of}}}', f"call_{of}"), st.integers(0, 10**9)), max_size=3, unique_by=str)


@given(st.fixed_dictionaries({"reasoning": texts, "content": texts, "refusal": texts, "tool_calls": calls}))
@settings(max_examples=50, deadline=None)
def test_the_events_of_any_answer_are_openais_and_add_up_to_the_whole_one(message: dict[str, Any]) -> None:
    fakes = ChatFakes(message)
    whole = Response.model_validate(post(fakes, body()).json())
    events = [EVENTS.validate_python(event) for event in events_of(post(fakes, body(stream=True)))]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    last = events[-1].response
    assert [event.response.id for event in events[:2]] == [last.id] * 2
    assert without_ids(last) == without_ids(whole)
    # Each item is added, grows and is done before the next one, and is then as the response has it at the end.
    places = [event.output_index for event in events[2:-1]]
    assert places == sorted(places)
    for i, item in enumerate(last.output):
        its_own = [event for event in events[2:-1] if event.output_index == i]
        assert its_own[0].type == "response.output_item.added"
        assert its_own[-1].type == "response.output_item.done"
        assert its_own[-1].item == item
        assert {event.item_id for event in its_own[1:-1]} <= {item.id}
        grown = "".join(event.delta for event in its_own if event.type.endswith(".delta"))
        assert grown == text_of(item)


def text_of(item: Any) -> str:
    if item.type == "function_call":
        return str(item.arguments)
    (part,) = item.content
    return str(part.refusal if part.type == "refusal" else part.text)


def without_ids(response: Response) -> list[dict[str, Any]]:
    return [item.to_dict() | {"id": ""} for item in response.output]


def test_the_events_of_a_stream_in_their_order() -> None:
    fakes = ChatFakes({"reasoning": "Hm", "content": "abcd", "tool_calls": [call("f", "{}")]}, "tool_calls")
    events = events_of(post(fakes, body(stream=True)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [event["response"]["status"] for event in (events[0], events[1], events[-1])] == ["in_progress"] * 2 + ["completed"]
    assert events[8]["item"]["content"] == []


def test_the_clients_own_stream_helper_and_parsing_work() -> None:
    async def check(port: int) -> None:
        async with client(port) as asking, asking.responses.stream(model="firewall", input="Why?") as stream:
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            response = await stream.get_final_response()
        assert "".join(deltas) == response.output_text == "all of it"

    on_the_wire(ChatFakes(), check)


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """Which is how a stateless conversation goes on."""
    fakes = ChatFakes({"reasoning": "Hm", "content": "I look.", "tool_calls": [CALL]}, "tool_calls")

    async def check(port: int) -> None:
        async with client(port) as asking:
            first = await asking.responses.create(**body(tools=[TOOL]))
            said = [{"role": "user", "content": "Why?"}, *(item.to_dict() for item in first.output)]
            said.append({"type": "function_call_output", "call_id": "call_1", "output": "Old."})
            await asking.responses.create(**body(said, tools=[TOOL]))

    on_the_wire(fakes, check)
    assert fakes.weak.asked["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Old."},
    ]


@pytest.mark.parametrize("broken", [{"breaks_after": 2}, {"raw": b"data: {}\n\n"}], ids=str)
def test_a_failure_in_the_middle_of_a_stream_is_raised_by_the_client(broken: dict[str, Any]) -> None:
    fakes = ChatFakes()
    vars(fakes.weak).update(broken)

    async def check(port: int) -> None:
        async with client(port) as asking:
            with pytest.raises(openai.APIError) as e:
                async for _ in await asking.responses.create(**body(stream=True)):
                    pass
        assert (e.value.message, e.value.code) == ("The model failed in the middle of its answer.", "model_failed")

    on_the_wire(fakes, check)
    assert [each.status for each in fakes.recorder.exchanges] == [502]
    events = [EVENTS.validate_python(event) for event in events_of(post(fakes, body(stream=True)))]
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")


def test_refusals_are_the_clients_own_exceptions() -> None:
    fakes = ChatFakes()

    async def check(port: int) -> None:
        async with client(port) as asking:
            with pytest.raises(openai.NotFoundError) as unknown:
                await asking.responses.create(model="gpt-4", input="Why?")
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.BadRequestError) as stored:
                await asking.responses.create(**body(store=True))
            assert stored.value.param == "store"
            fakes.weak.refusal = (400, "The prompt is too long.")
            with pytest.raises(openai.BadRequestError, match="too long"):
                await asking.responses.create(**body(stream=True))
            fakes.weak.refusal = None
            fakes.weak.raw = b'{"choices": []}'
            with pytest.raises(openai.InternalServerError) as none:
                await asking.responses.create(**body())
            assert (none.value.status_code, none.value.code) == (502, "model_failed")

    on_the_wire(fakes, check)


# With the gateway ------------------------------------------------------------------------------------------------------

PAIRS: list[tuple[Any, list[dict[str, Any]]]] = [
    (EASY, [{"role": "user", "content": EASY}]),
    (HARD, [{"role": "user", "content": HARD}]),
    (
        [
            {"role": "user", "content": EASY},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": [{"type": "input_text", "text": HARD}]},
        ],
        [{"role": "user", "content": EASY}, {"role": "assistant", "content": "2"}, {"role": "user", "content": HARD}],
    ),
]


@pytest.mark.parametrize("model", ["firewall", "firewall-0.1", "firewall-1", "large"])
@pytest.mark.parametrize(("said", "messages"), PAIRS, ids=range(len(PAIRS)))
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("serving", [{}, {"sticky": True}, {"chat_text": "conversation"}], ids=str)
def test_the_decision_is_that_of_the_same_chat(
    said: Any, messages: list[dict[str, Any]], model: str, streams: bool, serving: dict[str, Any]
) -> None:
    chat = ChatFakes(**serving).post("/v1/chat/completions", {"model": model, "stream": streams, "messages": messages})
    response = post(ChatFakes(**serving), {"model": model, "stream": streams, "input": said})
    assert response.status_code == 200
    assert firewall_headers(response) == firewall_headers(chat) != {}


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_is_recorded_and_priced_under_its_own_endpoint(streams: bool) -> None:
    token = {"prompt": 1_000_000, "completion": 2_000_000}  # dollars per million: 1 and 2 a token
    fakes = ChatFakes(prices={"weak": token, "strong": token})
    response = post(fakes, body(stream=streams))
    (exchange,) = fakes.recorder.exchanges
    assert (exchange.endpoint, exchange.status, exchange.streams) == ("responses", 200, streams)
    assert exchange.cost_usd == 12 + 2 * 5
    assert ("x-firewall-cost-usd" in response.headers) == (not streams)


def test_the_limits_of_a_chat_hold() -> None:
    response = post(ChatFakes(max_tokens=10), body(max_output_tokens=11))
    assert response.status_code == 400
    assert "serving.max_tokens" in response.json()["error"]["message"]
