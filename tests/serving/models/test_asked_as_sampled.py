"""A question becomes the same tokens when its model is sampled and when it is served: vLLM's own renderers, without an engine.

FIREWALL_RAY_MODELS may name a folder with real models in it, a Hugging Face folder each, which then are tested too.
"""

import asyncio
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from firewall_ray.config.models import SamplingConfig, VllmModelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.vllm import EngineThread, chat_params, engine_args
from firewall_ray.tasks.base import make_query

# Slow: importing vLLM takes ten seconds.
pytestmark = pytest.mark.slow

QUESTIONS = ["What is the capital of Docenyx?", "  two\n\nlines, an é and a {{ brace }} \n", "Question: x\nAnswer: <|im_end|></s>"]
SYSTEM = {"system_prompt": "Be short.", "chat_template_kwargs": {"enable_thinking": False}}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<a>' if add_generation_prompt }}"

MODELS = ["quickstart/models/weak"]
if REAL := os.environ.get("FIREWALL_RAY_MODELS"):
    MODELS += sorted(str(path.parent) for path in Path(REAL).glob("*/generation_config.json"))


def vllm_model(path: str, **asked: Any) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": path, "device": "cpu", "dtype": "float32", "max_model_len": 128, **asked})


def sampled_ids(model: VllmModelConfig, prompt: PromptFormat) -> list[list[int]]:
    """As a sampling actor hands them to its engine."""
    from vllm import EngineArgs
    from vllm.renderers import renderer_from_config

    renderer = renderer_from_config(EngineArgs(**engine_args(model, seed=0)).create_engine_config())
    thread: Any = SimpleNamespace(
        _engine=SimpleNamespace(renderer=renderer),
        _format=prompt,
        _chat_params=chat_params(prompt) if prompt.is_chat else None,
        _refusals=(),
    )
    queries = [make_query("custom", "test", question, "{}")._asdict() for question in QUESTIONS]
    return [EngineThread.render(thread, query)["prompt_token_ids"] for query in queries]


def served_ids(model: VllmModelConfig, prompt: PromptFormat) -> list[list[int]]:
    """As a model replica hands a client's chat to its engine: Ray's own tokenizer before its router renders as the engine does."""
    from ray.llm._internal.serve.routing_policies.kv_aware.vllm.tokenizer import Tokenizer

    from serve_app.models.chats import as_sampled
    from serve_app.models.deployment import llm_config

    arguments, chats = as_sampled(prompt, SamplingConfig())
    tokenizer = Tokenizer(llm_config("weak", model, ServingConfig(), arguments))

    async def tokenize() -> list[Any]:
        bodies = [{"model": "weak", "messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
        return [await tokenizer.tokenize(chats.filled(body)) for body in bodies]

    return asyncio.run(tokenize())


def base_model(path: str, folder: Path) -> str:
    """A copy of a model as base models are: no chat template, and a tokenizer that begins every text with BOS, as Llama's."""
    shutil.copytree(path, folder, ignore=shutil.ignore_patterns("chat_template.jinja", "*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = (tokenizer.bos_token, tokenizer.convert_tokens_to_ids(tokenizer.bos_token))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.mark.parametrize("path", MODELS)
@pytest.mark.parametrize("asked", [{"prompt": "chat"}, SYSTEM, {"chat_template": TEMPLATE}, {"prompt": "raw"}])
def test_a_question_is_served_token_for_token_as_it_was_sampled(path: str, asked: dict[str, Any]) -> None:
    model = vllm_model(path, **asked)
    prompt = prompt_format("weak", model)
    assert served_ids(model, prompt) == sampled_ids(model, prompt)


@pytest.mark.parametrize("asked", [{}, {"keep_trailing_space": True}, {"chat_template": TEMPLATE}])
def test_a_base_models_question_begins_with_bos_once_served_as_sampled(asked: dict[str, Any], tmp_path: Path) -> None:
    model = vllm_model(base_model(MODELS[0], tmp_path / "base"), **asked)
    prompt = prompt_format("weak", model)
    assert prompt.is_chat == ("chat_template" in asked)
    sampled = sampled_ids(model, prompt)
    assert [ids.count(ids[0]) for ids in sampled] == [1] * len(sampled)
    assert served_ids(model, prompt) == sampled
