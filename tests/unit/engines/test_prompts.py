"""How a model is asked: raw or chat, who decides, and which tokens come of it. tests/pipeline has vLLM's own renderer beside it."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompt_length import check_prompt_lengths
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ConfigError, ModelError, TaskError
from firewall_ray.stages.sample import sampling_spec
from firewall_ray.store.joins import LocalRows

WEAK = Path(__file__).parents[3] / "quickstart" / "models" / "weak"
QUERY = {"question": "Who?", "prompt": "Question: Who?\nAnswer: "}


def vllm(path: Path | str = WEAK, **settings: Any) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": str(path), **settings})


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """The weak model as a base model has it: without a chat template."""
    folder = tmp_path / "base"
    shutil.copytree(WEAK, folder, ignore=shutil.ignore_patterns("chat_template.jinja", "*.safetensors"))
    return folder


def test_auto_is_chat_where_the_tokenizer_has_a_template_and_the_log_says_so(
    base_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "firewall_ray"):
        assert prompt_format("weak", vllm()).is_chat
        assert not prompt_format("weak", vllm(base_model)).is_chat
    assert [record.message for record in caplog.records] == [
        "model weak is asked in its chat format, since its tokenizer has a chat template (models.weak.prompt: auto)",
        "model weak is asked with the paper's prompt, since its tokenizer has no chat template (models.weak.prompt: auto)",
    ]


def test_what_the_config_says_needs_no_tokenizer() -> None:
    assert not prompt_format("weak", vllm("no/where", prompt="raw")).is_chat
    assert prompt_format("weak", vllm("no/where", prompt="chat")).is_chat
    assert prompt_format("weak", vllm("no/where", chat_template="{{ messages[0].content }}")).is_chat
    with pytest.raises(ModelError, match=r"models\.weak\.path: no model at 'no/where'"):
        prompt_format("weak", vllm("no/where"))


def test_finished_samples_keep_their_format_when_the_model_is_out_of_reach() -> None:
    for kind in ("raw", "chat"):
        assert prompt_format("weak", vllm("no/where"), {"format": kind}).is_chat == (kind == "chat")


def test_a_chat_holds_nothing_of_the_paper_s_prompt() -> None:
    asked = prompt_format("weak", vllm(prompt="chat", system_prompt="Be brief."))
    assert asked.messages(QUERY) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prompt_format("weak", vllm(prompt="chat")).messages(QUERY) == [{"role": "user", "content": "Who?"}]


def test_a_prompt_of_another_form_is_sent_as_it_is() -> None:
    query = {"question": "Who?", "prompt": "Three examples first.\nQuestion: Who?\nAnswer: "}
    assert PromptFormat(is_chat=True).messages(query) == [{"role": "user", "content": query["prompt"]}]


def test_token_ids_are_those_of_transformers_chat_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    asked = prompt_format("weak", vllm(prompt="chat"))
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], add_generation_prompt=True)["input_ids"]
    assert asked.token_ids(tokenizer, QUERY) == expected
    # The shipped models' template is the paper's prompt, with its space.
    assert expected == tokenizer(QUERY["prompt"])["input_ids"]
    assert prompt_format("weak", vllm(prompt="raw")).token_ids(tokenizer, QUERY) == expected[:-1]


def test_a_template_of_one_s_own_is_jinja_or_a_file_of_it(tmp_path: Path, base_model: Path) -> None:
    jinja = "{% for m in messages %}<{{ m.content }}>{{ mood }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(jinja)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    for said in (jinja, str(tmp_path / "template.jinja")):
        asked = prompt_format("weak", vllm(base_model, chat_template=said, chat_template_kwargs={"mood": "!"}))
        assert tokenizer.decode(asked.token_ids(tokenizer, QUERY)) == "<Who?>!"
    with pytest.raises(ConfigError, match=r"models\.weak\.chat_template: /no/file: No such file"):
        prompt_format("weak", vllm(base_model, chat_template="/no/file"))


def test_the_identity_tells_formats_apart_and_holds_no_template() -> None:
    identities = [
        PromptFormat(),
        PromptFormat(keeps_space=True),
        PromptFormat(is_chat=True),
        PromptFormat(is_chat=True, system_prompt="Be brief."),
        PromptFormat(is_chat=True, template="{{ a }}"),
        PromptFormat(is_chat=True, template_kwargs={"enable_thinking": False}),
    ]
    said = [each.identity() for each in identities]
    assert all(said.count(each) == 1 for each in said)
    assert "{{ a }}" not in str(said)


def test_a_chat_has_no_stop_strings_and_more_room_for_its_answer() -> None:
    tasks = {"gsm8k": {}, "triviaqa": {}}
    config = RunConfig.model_validate({"root": "r", "queries": {"tasks": tasks}, "models": {"weak": vllm(), "strong": vllm()}})
    raw, chat = (sampling_spec(config, {"gsm8k", "triviaqa"}, PromptFormat(is_chat=is_chat)) for is_chat in (False, True))
    assert raw.stop == {"gsm8k": ("\nQuestion:",), "triviaqa": ("\n",)}
    assert chat.stop == {"gsm8k": (), "triviaqa": ()}
    assert all(chat.max_tokens[task] > raw.max_tokens[task] for task in tasks)


def test_max_tokens_may_be_a_limit_by_task() -> None:
    data = {
        "root": "r",
        "queries": {"tasks": {"gsm8k": {}, "triviaqa": {}}},
        "models": {"weak": vllm(), "strong": vllm()},
        "sampling": {"max_tokens": {"gsm8k": 300}},
    }
    spec = sampling_spec(RunConfig.model_validate(data), {"gsm8k", "triviaqa"}, PromptFormat())
    assert spec.max_tokens == {"gsm8k": 300, "triviaqa": 32}
    data["sampling"] = {"max_tokens": {"gsm9k": 300}}
    with pytest.raises(TaskError, match="did you mean 'gsm8k'"):
        sampling_spec(RunConfig.model_validate(data), {"gsm8k"}, PromptFormat())


def test_a_chat_s_template_counts_against_the_context() -> None:
    rows = pa.table({"query_id": ["q"], "task": ["t"], "question": ["Who?"], "prompt": [QUERY["prompt"]]})
    queries = LocalRows(rows.to_batches(), rows.schema)
    check_prompt_lengths("weak", vllm(max_model_len=60), queries, PromptFormat(is_chat=True))
    long = PromptFormat(is_chat=True, template="{% for m in messages %}{{ m.content }}{% endfor %}" + "one two " * 60)
    with pytest.raises(TaskError, match=r"the prompt of q \(task t\) has \d+ tokens"):
        check_prompt_lengths("weak", vllm(max_model_len=60), queries, long)


def test_a_chat_prompt_for_the_completions_api_is_refused() -> None:
    server = {"engine": "openai", "base_url": "http://127.0.0.1/v1", "model": "id"}
    assert OpenAIModelConfig.model_validate({**server, "prompt": "chat"}).api == "chat"
    assert OpenAIModelConfig.model_validate(server).api == "completions"
    with pytest.raises(ValueError, match="prompt: chat cannot be sent to /completions"):
        OpenAIModelConfig.model_validate({**server, "prompt": "chat", "api": "completions"})
