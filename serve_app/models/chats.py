"""Clients' chats, put to a model as its samples were: what was graded, and what the router learnt, is what is served.

The driver makes an engine's arguments; `ChatDefaults` fills bodies on model replicas, for a model elsewhere on ingress replicas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from firewall_ray.config.models import SamplingConfig
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.schemas import PROMPT_TEMPLATE

# A base model answers and goes on with a question of its own, at which every task stops it.
STOP = ("\nQuestion:",)

# Jinja, after `question` and `answer` are set. What is neither the user's nor the model's (a system prompt) is a paragraph.
TURNS = """\
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' %}
        {{- answer.rstrip() + ' ' + content.strip() }}
    {%- else %}
        {{- '' if loop.first else '\\n\\n' }}
        {{- question + content if message.role == 'user' else content }}
    {%- endif %}
{%- endfor %}
{{- answer if add_generation_prompt else '' }}"""


@dataclass(frozen=True)
class ChatDefaults:
    """What a chat gets that its client did not say. special_tokens: the tokenizer adds them, where no template writes any."""

    system_prompt: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    special_tokens: bool = False

    def filled(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A chat's body with them. Fields of a wrong type stay as they are, for the model to refuse."""
        filled = dict(body)
        messages, kwargs = body.get("messages"), body.get("chat_template_kwargs")
        if self.system_prompt is not None and isinstance(messages, list) and not any(map(_is_system, messages)):
            filled["messages"] = [{"role": "system", "content": self.system_prompt}, *messages]
        if self.template_kwargs and (kwargs is None or isinstance(kwargs, dict)):
            filled["chat_template_kwargs"] = {**self.template_kwargs, **(kwargs or {})}
        # An empty list of the client's means no stop strings.
        if self.stop and body.get("stop") is None:
            filled["stop"] = list(self.stop)
        if self.special_tokens:
            filled.setdefault("add_special_tokens", True)
        return filled


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def chat_defaults(prompt: PromptFormat) -> ChatDefaults:
    """Of a model whose server has a chat template of its own, wherever it is."""
    return ChatDefaults(prompt.system_prompt, prompt.template_kwargs) if prompt.is_chat else ChatDefaults()


def as_sampled(prompt: PromptFormat, sampling: SamplingConfig) -> tuple[dict[str, Any], ChatDefaults]:
    """Arguments of the engine that serves a model which was sampled so, and what its chats get."""
    arguments: dict[str, Any] = {
        # Of a request that names none, in place of those in the model's generation_config.json (top_k, repetition_penalty, ...).
        "generation_config": "vllm",
        "override_generation_config": {"temperature": sampling.temperature, "top_p": sampling.top_p},
    }
    if prompt.is_chat:
        template = {} if prompt.template is None else {"chat_template": prompt.template}
        return {**arguments, **template}, chat_defaults(prompt)
    stop = STOP if sampling.stop is None else tuple(sampling.stop)
    return {**arguments, "chat_template": raw_template(prompt)}, ChatDefaults(stop=stop, special_tokens=True)


def raw_template(prompt: PromptFormat) -> str:
    """For a model that was sampled with the paper's prompt: one question gives that prompt, a conversation turns of it."""
    question, answer = prompt.raw({"prompt": PROMPT_TEMPLATE}).split("{question}")
    return f"{{% set question, answer = {question!r}, {answer!r} %}}{TURNS}"
