"""What routing reads of a request: the strong fraction in the model's name, and the text that the router scores.

Runs in the ingress, on the request's parsed JSON. Everything else in a request is the models' business.
"""

import re
from collections.abc import Sequence
from typing import Any

FIREWALL = "firewall"
_FRACTION = re.compile(rf"{FIREWALL}-(\d+\.?\d*|\.\d+)", re.ASCII)


def is_reserved(model_id: str) -> bool:
    """Whether clients could not reach a model with this id, because the router answers to it.

    >>> [is_reserved(name) for name in ("firewall", "firewall-7b", "strong")]
    [True, True, False]
    """
    return model_id == FIREWALL or model_id.startswith(f"{FIREWALL}-")


def strong_fraction_of(model: str, default: float) -> float | None:
    """The strong fraction that a model name asks for, in [0, 1]; None when the name is not the router's.

    >>> strong_fraction_of("firewall", 0.5), strong_fraction_of("firewall-0.3", 0.5), strong_fraction_of("firewall-1.5", 0.5)
    (0.5, 0.3, None)
    """
    if model == FIREWALL:
        return default
    found = _FRACTION.fullmatch(model)
    fraction = float(found.group(1)) if found else None
    return fraction if fraction is not None and fraction <= 1 else None


def question_of(messages: Sequence[Any]) -> str | None:
    """The text of the last user message that has any: its text parts joined by newlines, as vLLM joins them. None: no text.

    Content may be a string, null, or parts, of which images and the like are passed over.

    >>> question_of([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, {"role": "assistant", "content": None}])
    'Why?'
    """
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user" and (text := _content_text(message.get("content"))):
            return text
    return None


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def prompts_of(prompt: Any) -> list[str]:
    """The texts of a completion's `prompt`, as they are: one, or several. Empty where it holds token ids or nothing.

    >>> prompts_of("Question: Why?"), prompts_of(["a", "b"]), prompts_of([[1, 2]])
    (['Question: Why?'], ['a', 'b'], [])
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    readable = isinstance(prompts, list) and all(isinstance(each, str) for each in prompts)
    return list(prompts) if readable else []
