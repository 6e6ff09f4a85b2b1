"""What a chat gets that its client did not say, and the paper's prompt as a chat template."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from firewall_ray.config.models import SamplingConfig
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.schemas import PROMPT_TEMPLATE
from serve_app.models.chats import ChatDefaults, as_sampled, chat_defaults, raw_template

USER = {"role": "user", "content": "Who?"}
RAW = PromptFormat()
CHAT = PromptFormat(True, "Be short.", None, {"enable_thinking": False, "depth": 1})


def rendered(messages: list[dict[str, Any]], prompt: PromptFormat = RAW, **options: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained("quickstart/models/weak")
    options = {"add_generation_prompt": True, **options}
    return str(tokenizer.apply_chat_template(messages, chat_template=raw_template(prompt), tokenize=False, **options))


# The paper's prompt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["Who?", " two\n\nlines \n", "{{ x }} {% y %} 'é' \\n", "Question: Who?\nAnswer: I"])
@pytest.mark.parametrize("prompt", [RAW, PromptFormat(keeps_space=True)])
def test_one_question_becomes_the_prompt_that_was_sampled(question: str, prompt: PromptFormat) -> None:
    sampled = prompt.raw({"prompt": PROMPT_TEMPLATE.format(question=question)})
    assert rendered([{"role": "user", "content": question}], prompt) == sampled


def test_a_conversation_becomes_turns_of_it_under_its_system_prompt() -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        USER,
        {"role": "assistant", "content": " Ann\n"},
        {"role": "user", "content": "When?"},
    ]
    assert rendered(messages) == "Be short.\n\nQuestion: Who?\nAnswer: Ann\n\nQuestion: When?\nAnswer:"


def test_what_has_no_place_in_it_is_a_paragraph_and_null_is_nothing() -> None:
    messages = [USER, {"role": "assistant", "content": None}, {"role": "tool", "content": "42"}]
    assert rendered(messages) == "Question: Who?\nAnswer: \n\n42\nAnswer:"


def test_an_answer_that_was_begun_can_be_gone_on_with() -> None:
    messages = [USER, {"role": "assistant", "content": "It was"}]
    assert rendered(messages, add_generation_prompt=False) == "Question: Who?\nAnswer: It was"


# Defaults -------------------------------------------------------------------------------------------------------------


def test_a_chat_gets_the_system_prompt_and_the_template_settings_that_were_sampled() -> None:
    body = {"messages": [USER], "seed": 7}
    filled = chat_defaults(CHAT).filled(body)
    assert filled == {
        "messages": [{"role": "system", "content": "Be short."}, USER],
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False, "depth": 1},
    }
    assert filled["messages"] == CHAT.messages({"question": "Who?", "prompt": "Question: Who?\nAnswer: "})
    assert body == {"messages": [USER], "seed": 7}  # the client's own, which the other model may still be asked with


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_the_client_says_itself_stays(role: str) -> None:
    messages = [{"role": role, "content": "Be long."}, USER]
    filled = chat_defaults(CHAT).filled({"messages": messages, "chat_template_kwargs": {"enable_thinking": True}})
    assert filled["messages"] == messages
    assert filled["chat_template_kwargs"] == {"enable_thinking": True, "depth": 1}


@pytest.mark.parametrize(("stop", "sent"), [(None, ["\nQuestion:"]), ([], []), ("x", "x"), (["a", "b"], ["a", "b"])])
def test_a_base_model_stops_before_a_question_of_its_own_unless_the_client_says_where(stop: Any, sent: Any) -> None:
    _, chats = as_sampled(RAW, SamplingConfig())
    assert chats.filled({"messages": [USER], "stop": stop})["stop"] == sent
    assert chats.filled({"messages": [USER]})["stop"] == ["\nQuestion:"]
    assert as_sampled(RAW, SamplingConfig(stop=["END"]))[1].filled({"messages": []})["stop"] == ["END"]


def test_the_tokenizer_adds_special_tokens_to_a_raw_prompt_as_in_sampling_and_none_to_a_template() -> None:
    assert as_sampled(RAW, SamplingConfig())[1].filled({"messages": [USER]})["add_special_tokens"] is True
    assert "add_special_tokens" not in as_sampled(CHAT, SamplingConfig())[1].filled({"messages": [USER]})


@pytest.mark.parametrize(
    "body", [{"messages": 7}, {"messages": None, "chat_template_kwargs": "x"}, {"messages": "hello", "chat_template_kwargs": [1]}]
)
def test_fields_of_a_wrong_type_are_left_for_the_model_to_refuse(body: dict[str, Any]) -> None:
    assert chat_defaults(CHAT).filled(body).items() >= body.items()


def test_a_model_asked_by_its_own_template_gets_nothing_and_one_with_another_template_gets_that() -> None:
    arguments, chats = as_sampled(PromptFormat(is_chat=True), SamplingConfig())
    assert (chats, "chat_template" in arguments) == (ChatDefaults(), False)
    assert as_sampled(PromptFormat(True, template="{{ x }}"), SamplingConfig())[0]["chat_template"] == "{{ x }}"


def test_without_a_temperature_of_the_clients_that_of_sampling_holds_and_not_the_checkpoints_own() -> None:
    arguments, _ = as_sampled(CHAT, SamplingConfig(temperature=0.7))
    assert arguments == {"generation_config": "vllm", "override_generation_config": {"temperature": 0.7, "top_p": 1.0}}
