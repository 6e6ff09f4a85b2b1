"""How a model is asked: with the paper's prompt (`raw`), or with the question as a user's message in its chat format (`chat`).

Resolved in the driver, used on the sampling actors. An instruct model asked in a raw prompt goes on with the text instead of
answering it: HumanEval 0 of 16, where the chat format gets 12 of 16 (Qwen2.5-Coder-0.5B-Instruct).
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firewall_ray.config.models import ModelConfig, VllmModelConfig
from firewall_ray.engines.prompt_length import context_length, load_tokenizer
from firewall_ray.errors import ConfigError

logger = logging.getLogger("firewall_ray")

Message = dict[str, str]


@dataclass(frozen=True)
class PromptFormat:
    """template: Jinja text in place of the tokenizer's own chat template. keeps_space: see `raw`."""

    is_chat: bool = False
    system_prompt: str | None = None
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    keeps_space: bool = False

    @property
    def column(self) -> str:
        """Of `queries/`, what a query is made of."""
        return "question" if self.is_chat else "prompt"

    def raw(self, query: Mapping[str, Any]) -> str:
        """The prompt without the space at its end, which is a token of its own to most tokenizers.

        Words begin with their space there (" Paris"), so after that token comes what needs none: a digit, as a rule.

        >>> PromptFormat().raw({"prompt": "Question: Who?\\nAnswer: "})
        'Question: Who?\\nAnswer:'
        """
        prompt: str = query["prompt"]
        return prompt if self.keeps_space else prompt.rstrip(" ")

    def messages(self, query: Mapping[str, Any]) -> list[Message]:
        """The conversation that a chat model is asked with: what a client of the served model sends."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": query["question"]}]

    def token_ids(self, tokenizer: Any, query: Mapping[str, Any]) -> list[int]:
        """As transformers makes them; vLLM's renderer makes the same."""
        if not self.is_chat:
            return list(tokenizer(self.raw(query))["input_ids"])
        text = tokenizer.apply_chat_template(
            self.messages(query), chat_template=self.template, tokenize=False, add_generation_prompt=True, **self.template_kwargs
        )
        # The template writes the special tokens itself.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def identity(self) -> dict[str, Any]:
        """What of it decides a sample; recorded with the samples and on the router's card."""
        if not self.is_chat:
            return {"format": "raw", "keep_trailing_space": self.keeps_space}
        template = None if self.template is None else hashlib.sha256(self.template.encode()).hexdigest()[:16]
        return {
            "format": "chat",
            "system_prompt": self.system_prompt,
            "chat_template": template,
            "chat_template_kwargs": dict(self.template_kwargs),
        }


def prompt_format(key: str, model: ModelConfig, recorded: Mapping[str, Any] | None = None) -> PromptFormat:
    """What `models.<key>` says, with `auto` decided. recorded: the identity of rows that are there, which have decided it already.

    Raises ModelError where `auto` has to look at a tokenizer that cannot be loaded, ConfigError without the template's file.
    """
    if not _is_chat(key, model, recorded):
        return PromptFormat(keeps_space=model.keep_trailing_space)
    template = _template(key, model.chat_template) if isinstance(model, VllmModelConfig) else None
    return PromptFormat(True, model.system_prompt, template, model.chat_template_kwargs)


def _is_chat(key: str, model: ModelConfig, recorded: Mapping[str, Any] | None) -> bool:
    if model.prompt != "auto":
        return model.prompt == "chat"
    if not isinstance(model, VllmModelConfig):
        return model.api == "chat"
    if recorded is not None:
        # Of finished samples the model itself may be out of reach by now.
        return bool(recorded["format"] == "chat")
    if model.chat_template is not None:
        return True
    context_length(key, model)  # names the field where there is no such model
    is_chat = load_tokenizer(key, model).chat_template is not None
    reason = "has a chat template" if is_chat else "has no chat template"
    words = "in its chat format" if is_chat else "with the paper's prompt"
    logger.info("sample: %s is asked %s, since its tokenizer %s (models.%s.prompt: auto)", key, words, reason, key)
    return is_chat


def _template(key: str, said: str | None) -> str | None:
    # Jinja has braces, a file's name has none.
    if said is None or "{" in said:
        return said
    try:
        return Path(said).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"models.{key}.chat_template: {said}: {e.strerror}. Give a file of Jinja, or the Jinja itself.") from e
