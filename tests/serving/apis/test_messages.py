"""Anthropic's Messages API on the gateway: its official client, whole and streamed, and what the model is asked."""

from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from chat_fakes import EASY, HARD, ChatFakes, call, events_of, firewall_headers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import from_json
from wire import on_the_wire

EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
TOOL = {"name": "look_up", "description": "A fact.", "input_schema": {"type": "object", "properties": {"of": {"type": "string"}}}}
CALL = call("look_up", '{"of": "\u2028 Rome"}')
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def body(text: Any = "Why?", **options: Any) -> dict[str, Any]:
    return {"model": "firewall", "max_tokens": 9, "messages": [{"role": "user", "content": text}], **options}


def post(fakes: ChatFakes, asked: dict[str, Any]) -> Any:
    return fakes.post("/v1/messages", asked)


def asked_of_model(asked: dict[str, Any]) -> dict[str, Any]:
    """What the model gets of a request that is fine."""
    fakes = ChatFakes()
    response = post(fakes, asked)
    assert response.status_code == 200, response.text
    return fakes.weak.asked


# What the model is asked -----------------------------------------------------------------------------------------------


def test_a_conversation_becomes_the_same_chat() -> None:
    asked = body(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {"of": "it"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "A cat"}, IMAGE]},
                    {"type": "tool_result", "tool_use_id": "call_2", "content": "gone", "is_error": True},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
        tools=[TOOL],
    )
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert asked_of_model(asked) == {
        "model": "firewall",
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, url]},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"of":"it"}'}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "A cat"},
            {"role": "tool", "tool_call_id": "call_2", "content": "Error: gone"},
            {"role": "user", "content": [url, {"type": "text", "text": "So?"}]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "look_up", "description": "A fact.", "parameters": TOOL["input_schema"]},
            }
        ],
    }


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 5}, {"temperature": 0.5, "top_p": 0.9, "top_k": 5}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", "system": None}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
    ids=str,
)
def test_an_option_is_the_chats(option: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = asked_of_model(body(**option))
    plain = {"model": "firewall", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}
    assert asked == plain | expected


def test_a_large_request_becomes_the_same_chat() -> None:
    """It is translated in a thread."""
    parts = [{"type": "text", "text": "word " * 10}] * 2_000
    assert asked_of_model(body(parts))["messages"] == [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "Why?"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
            "messages.0.content.0.source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{}]}]}]},
            "messages.0.content.0.content.0.type",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"top_k": 1.5}, "top_k"),
        ({"canary": "canary"}, "canary"),
    ],
    ids=str,
)
def test_what_no_chat_can_serve_is_a_400_that_names_the_field(wrong: dict[str, Any], field: str) -> None:
    fakes = ChatFakes()
    response = post(fakes, body(**wrong))
    assert response.status_code == 400
    error = response.json()
    assert error.keys() == {"type", "error"}
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(f"{field}: ")
    assert fakes.weak.bodies == fakes.router.calls == []
    assert [(each.endpoint, each.status) for each in fakes.recorder.exchanges] == [("messages", 400)]


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    wrong = body([{"type": "canary", "text": "canary"}], temperature="canary")
    assert "canary" not in post(ChatFakes(), wrong).text


# Answers ---------------------------------------------------------------------------------------------------------------

ANSWERS: list[tuple[dict[str, Any], str, list[dict[str, Any]], str]] = [
    ({"content": "all of it"}, "stop", [{"type": "text", "text": "all of it"}], "end_turn"),
    ({"content": "all of"}, "length", [{"type": "text", "text": "all of"}], "max_tokens"),
    (
        {"reasoning": "Well\u2028.", "content": "So."},
        "stop",
        [{"type": "thinking", "thinking": "Well\u2028.", "signature": ""}, {"type": "text", "text": "So."}],
        "end_turn",
    ),
    (
        {"content": "I look.", "tool_calls": [CALL, call("now", "", "call_2")]},
        "tool_calls",
        [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {"of": "\u2028 Rome"}},
            {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
        ],
        "tool_use",
    ),
    (
        {"content": None, "tool_calls": [call("look_up", "{}")]},
        "stop",  # of a tool that the client named
        [{"type": "tool_use", "id": "call_1", "name": "look_up", "input": {}}],
        "tool_use",
    ),
    (
        {"content": None, "tool_calls": [call("look_up", '{"of": "Ro", "in": ')]},
        "length",
        [{"type": "tool_use", "id": "call_1", "name": "look_up", "input": {"of": "Ro"}}],
        "max_tokens",
    ),
    ({"content": None, "refusal": "No."}, "stop", [{"type": "text", "text": "No."}], "refusal"),
    ({"content": "Half"}, "content_filter", [{"type": "text", "text": "Half"}], "refusal"),
    ({"content": ""}, "stop", [{"type": "text", "text": ""}], "end_turn"),
]


@pytest.mark.parametrize(("message", "finish_reason", "content", "stop_reason"), ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_is_the_same_whole_and_streamed(
    message: dict[str, Any], finish_reason: str, content: list[dict[str, Any]], stop_reason: str
) -> None:
    async def check(port: int) -> None:
        async with client(port) as asked:
            whole = await asked.messages.create(**body())
            async with asked.messages.stream(**body()) as stream:
                streamed = await stream.get_final_message()
        for answer in (whole, streamed):
            assert answer.to_dict(exclude_none=True) == {
                "id": answer.id,
                "type": "message",
                "role": "assistant",
                "model": "small",
                "content": content,
                "stop_reason": stop_reason,
                # 12 tokens of the prompt, 4 of them from the cache
                "usage": {
                    "input_tokens": 8,
                    "cache_read_input_tokens": 4,
                    "cache_creation_input_tokens": 0,
                    "output_tokens": 5,
                },
            }
            assert answer.id.startswith("msg_")

    on_the_wire(ChatFakes(message, finish_reason), check)


def client(port: int, key: str = "none", **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key=key, max_retries=0, **options)


texts = st.one_of(st.none(), st.text(max_size=20))
calls = st.lists(st.builds(lambda of: call("f", f'{{"of": {of}}}', f"call_{of}"), st.integers(0, 10**9)), max_size=3, unique_by=str)


@given(st.fixed_dictionaries({"reasoning": texts, "content": texts, "tool_calls": calls}))
@settings(max_examples=50, deadline=None)
def test_the_events_of_any_answer_are_anthropics_and_add_up_to_the_whole_one(message: dict[str, Any]) -> None:
    fakes = ChatFakes(message)
    whole = Message.model_validate(post(fakes, body()).json())
    events = [EVENTS.validate_python(event) for event in events_of(post(fakes, body(stream=True)))]
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    # Each block begins, grows and ends before the next one, under its place in the answer.
    places = [(event.index, event.type) for event in events[1:-2]]
    for i, block in enumerate(whole.content):
        its_own = [kind for index, kind in places if index == i]
        assert its_own[0] == "content_block_start"
        assert its_own[-1] == "content_block_stop"
        assert set(its_own[1:-1]) <= {"content_block_delta"}
        grown = "".join(
            getattr(event.delta, {"tool_use": "partial_json"}.get(block.type, block.type))
            for event in events[1:-2]
            if event.index == i and event.type == "content_block_delta"
        )
        if block.type == "tool_use":
            assert from_json(grown) == block.input
        else:
            assert grown == getattr(block, block.type)
    assert places == sorted(places, key=lambda place: place[0])


def test_the_events_of_a_stream_in_full() -> None:
    fakes = ChatFakes({"content": "ab", "tool_calls": [call("f", "{}")]}, "tool_calls")
    start, *events = events_of(post(fakes, body(stream=True)))
    none = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    assert start["message"] | {"id": ""} == {
        "id": "",
        "type": "message",
        "role": "assistant",
        "model": "small",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": none,
    }
    used = {"input_tokens": 8, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 5}
    assert events == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ab"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "call_1", "name": "f", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": used},
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(("found", "expected"), [("END", ("stop_sequence", "END")), ("\nQuestion:", ("end_turn", None))])
def test_only_the_clients_own_stop_string_is_named(found: str, expected: tuple[str, str | None]) -> None:
    """A base model has others, of which the client knows nothing."""
    fakes = ChatFakes()
    fakes.weak.stop_reason = found
    answer = post(fakes, body(stop_sequences=["END"])).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == expected
    delta = events_of(post(fakes, body(stop_sequences=["END"], stream=True)))[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected


@pytest.mark.parametrize("arguments", ["{", "[]", '"a"'])
def test_arguments_that_are_none_are_the_models_fault(arguments: str) -> None:
    fakes = ChatFakes({"content": None, "tool_calls": [call("f", arguments)]}, "tool_calls")
    response = post(fakes, body())
    assert (response.status_code, response.json()["error"]["type"]) == (502, "api_error")
    assert [each.status for each in fakes.recorder.exchanges] == [502]


# With the gateway ------------------------------------------------------------------------------------------------------

PAIRS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": EASY}]},
    {"messages": [{"role": "user", "content": HARD}]},
    {
        "messages": [
            {"role": "user", "content": EASY},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": [{"type": "text", "text": HARD}]},
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "text", "text": HARD}, {"type": "text", "text": EASY}]}]},
]


@pytest.mark.parametrize("model", ["firewall", "firewall-0.1", "firewall-1", "large"])
@pytest.mark.parametrize("asked", PAIRS, ids=range(len(PAIRS)))
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("serving", [{}, {"sticky": True}, {"shadow": "weak"}], ids=str)
def test_the_decision_is_that_of_the_same_chat(asked: dict[str, Any], model: str, streams: bool, serving: dict[str, Any]) -> None:
    chat = ChatFakes(**serving).post("/v1/chat/completions", {"model": model, "stream": streams, **asked})
    message = post(ChatFakes(**serving), {"model": model, "max_tokens": 9, "stream": streams, **asked})
    assert message.status_code == 200
    assert firewall_headers(message) == firewall_headers(chat) != {}


def test_a_conversation_stays_where_a_chat_began_it() -> None:
    fakes = ChatFakes(sticky=True)
    first = [{"role": "user", "content": HARD}]
    fakes.post("/v1/chat/completions", {"model": "firewall", "messages": first})
    later = [*first, {"role": "assistant", "content": "So."}, {"role": "user", "content": EASY}]
    response = post(fakes, body(messages=later))
    assert firewall_headers(response)["x-firewall-reason"] == "sticky"
    assert fakes.strong.sessions[0] == fakes.strong.sessions[1]


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_is_recorded_and_priced_under_its_own_endpoint(streams: bool) -> None:
    token = {"prompt": 1_000_000, "completion": 2_000_000}  # dollars per million: 1 and 2 a token
    fakes = ChatFakes(prices={"weak": token, "strong": token})
    post(fakes, body(stream=streams))
    (exchange,) = fakes.recorder.exchanges
    assert (exchange.endpoint, exchange.status, exchange.streams) == ("messages", 200, streams)
    assert exchange.cost_usd == 12 + 2 * 5
    assert fakes.counters.snapshot()["money"]["by_endpoint"].keys() == {"messages"}


def test_a_request_falls_back_to_the_other_model() -> None:
    fakes = ChatFakes()
    fakes.weak.why = "dead"
    response = post(fakes, body())
    assert (response.json()["model"], response.headers["x-firewall-fallback"]) == ("large", "dead")
