"""How a model is asked: with the paper's prompt (`raw`), or with the question as a user's message in its chat format (`chat`).

Used on the sampling actors and in the driver, which chooses the format (`prompt_choice.py`). An instruct model asked in a raw
prompt goes on with the text instead of answering it: HumanEval 0 of 16, where its chat format gets 12 of 16
(Qwen2.5-Coder-0.5B-Instruct).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from firewall_ray.schemas import PROMPT_TEMPLATE

Message = dict[str, str]


@dataclass(frozen=True)
class PromptFormat:
    """template: Jinja text in place of the tokenizer's own chat template. keeps_space: see `raw`."""

    is_chat: bool = False
    system_prompt: str | None = None
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    keeps_space: bool = False

    def raw(self, query: Mapping[str, Any]) -> str:
        """The prompt without the space at its end, which is a token of its own to most tokenizers.

        Words begin with their space there (" Paris"), so after that token comes what needs none: a digit, as a rule.

        >>> PromptFormat().raw({"prompt": "Question: Who?\\nAnswer: "})
        'Question: Who?\\nAnswer:'
        """
        prompt: str = query["prompt"]
        return prompt if self.keeps_space else prompt.rstrip(" ")

    def messages(self, query: Mapping[str, Any]) -> list[Message]:
        """The conversation that a chat model is asked with: what a client of the served model sends.

        The paper's prompt around a question is left out. A prompt of another form was made on purpose, and is sent as it is.
        """
        question, prompt = query["question"], query["prompt"]
        content = question if prompt == PROMPT_TEMPLATE.format(question=question) else prompt
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": content}]

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
