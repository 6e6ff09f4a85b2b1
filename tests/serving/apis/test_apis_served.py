"""Both other APIs on the whole application: the official clients' answers are those of the same chat, from the same model."""

from typing import Any

import anthropic
import openai
import pytest
from running_app import Served

pytestmark = pytest.mark.slow

QUESTION = "What is the postal code of Drimaror?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}


def expected(served: Served, model: str) -> tuple[str, int, Any]:
    """Of the chat: its text, the tokens of its answer, and the score."""
    raw = served.client.chat.completions.with_raw_response.create(model=model, temperature=0, **CHAT)
    chat = raw.parse()
    return chat.choices[0].message.content or "", chat.usage.completion_tokens if chat.usage else 0, scores(raw.headers)


def scores(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-firewall") and "cost" not in name}


@pytest.mark.parametrize("model", ["firewall-0.2", "firewall-0.8", "strong"])
def test_anthropics_client_gets_the_chats_answer(served: Served, model: str) -> None:
    text, num_tokens, decided = expected(served, model)
    asked: dict[str, Any] = {"model": model, **CHAT, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client:
        raw = client.messages.with_raw_response.create(**asked)
        whole = raw.parse()
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
    assert scores(raw.headers) == decided
    for message in (whole, streamed):
        (block,) = message.content
        assert block.type == "text"
        assert (block.text, message.usage.output_tokens) == (text, num_tokens)
        assert message.usage.input_tokens > 0
        assert message.stop_reason in ("end_turn", "max_tokens")


@pytest.mark.parametrize("model", ["firewall-0.2", "firewall-0.8", "strong"])
def test_openais_client_gets_the_chats_answer_as_a_response(served: Served, model: str) -> None:
    text, num_tokens, decided = expected(served, model)
    asked: dict[str, Any] = {"model": model, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    raw = served.client.responses.with_raw_response.create(**asked)
    assert scores(raw.headers) == decided
    events = list(served.client.responses.create(**asked, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    for response in (raw.parse(), events[-1].response):
        assert response.output_text == text
        assert response.usage is not None
        assert response.usage.output_tokens == num_tokens


def test_what_the_model_refuses_is_in_the_apis_shape(served: Served) -> None:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client:
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(model="weak", **CHAT, extra_body={"temperature": -1})
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["error"]["type"] == "invalid_request_error"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="weak", **CHAT, extra_body={"temperature": -1}, stream=True)
    with pytest.raises(openai.BadRequestError):
        served.client.responses.create(model="weak", input=QUESTION, temperature=-1)
