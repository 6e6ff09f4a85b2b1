"""What clients ask of the models beyond text, on real vLLM: answers bound to a schema, tools, log-probabilities.

Served or refused in the model's own words, by the model that the router chose; never a 500, and no cause for the other model.
"""

import json
from typing import Any

import httpx
import pytest
from running_app import Served

pytestmark = pytest.mark.slow

# One word: a tiny model may well fill an object with blanks until its tokens run out, which JSON allows.
YES_OR_NO = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}, "strict": True}}
TOOL = {"name": "look_up", "description": "Looks up.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
MODELS = ["firewall-0", "firewall-1", "weak", "strong"]


def chat(served: Served, model: str, **options: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is the capital of Docenyx?"}], **options}
    return httpx.post(f"{served.url}/v1/chat/completions", json={"max_tokens": 12, "temperature": 0, **body}, timeout=120)


def message_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_bound_to_a_schema_keeps_it(served: Served, model: str) -> None:
    assert json.loads(message_of(chat(served, model, response_format=YES_OR_NO))["content"]) in ("yes", "no")


def test_a_stream_bound_to_a_schema_keeps_it(served: Served) -> None:
    stream = served.client.chat.completions.create(
        model="firewall",
        messages=[{"role": "user", "content": "Yes?"}],
        response_format=YES_OR_NO,  # type: ignore[call-overload]
        stream=True,
        max_tokens=12,
    )
    assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in stream)) in ("yes", "no")


@pytest.mark.parametrize("model", MODELS)
def test_tools_that_are_not_to_be_called_change_no_answer(served: Served, model: str) -> None:
    plain = message_of(chat(served, model))
    message = message_of(chat(served, model, tools=TOOLS, tool_choice="none"))
    assert not message.get("tool_calls")
    assert message["content"] == plain["content"]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "poem"}},
        {"response_format": "json"},
        {"structured_outputs": {"regex": "("}},
        {"tools": "look_up"},
        {"tools": [{"type": "function"}]},
        {"tools": TOOLS, "tool_choice": "sometimes"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "not_there"}}},
        {"tools": TOOLS, "tool_choice": "auto"},  # for these three the model needs a parser
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        {"tool_choice": "required"},
        {"logprobs": True, "top_logprobs": 10_000},
        {"logit_bias": {"99999999": 1}},
        {"stop": [1, 2]},
        {"n": -1},
        {"max_tokens": 500_000},  # beyond a million the ingress refuses it
    ],
)
def test_what_the_model_does_not_take_is_the_clients_error_and_no_fallback(served: Served, options: Any, streams: bool) -> None:
    response = chat(served, "firewall-1", stream=streams, **options)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "function-wrap" not in error["message"]
    assert response.headers["x-firewall-route"] == "strong"
    assert "x-firewall-fallback" not in response.headers
