"""What routing reads of a request: the strong fraction in the model's name, and the text that the router scores.

Runs in the ingress, on the request's parsed JSON. Everything else in a request is the models' business.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from firewall_ray.config.names import FIREWALL, fraction_in
from firewall_ray.config.serving import Route
from serve_app.errors import RequestRefused

FRACTION_HEADER = "x-firewall-strong-fraction"


@dataclass(frozen=True)
class RoutingOptions:
    """route: the model that the client named, for no routing. strong_fraction: in [0, 1]; None: the default in force."""

    route: Route | None = None
    strong_fraction: float | None = None


def routing_options(
    model: Any, headers: Mapping[str, str], ids: Mapping[Route, str], known: Sequence[str] | None = None
) -> RoutingOptions:
    """What a request's `model` and headers ask of routing. ids: of the pair. known: what a refusal says that there is, where that
    is not all of it. Raises RequestRefused when they name nothing here.

    >>> routing_options("firewall-0.3", {}, {"weak": "small"}), routing_options("small", {}, {"weak": "small"})
    (RoutingOptions(route=None, strong_fraction=0.3), RoutingOptions(route='weak', strong_fraction=None))
    """
    if not isinstance(model, str):
        there_are = _there_are(ids, known)
        if model is None:
            raise RequestRefused(400, f"model is missing. {there_are}", code="missing_model", param="model")
        raise RequestRefused(400, f"model: must be a string. {there_are}", code="invalid_type", param="model")
    # First: a model asked for by its own id is asked no fraction of, whatever a header says.
    for route, model_id in ids.items():
        if model == model_id:
            return RoutingOptions(route=route)
    named = fraction_in(model)
    if model != FIREWALL and named is None:
        message = f"The model {model[:100]!r} does not exist. {_there_are(ids, known)}"
        raise RequestRefused(404, message, code="model_not_found", param="model")
    given = headers.get(FRACTION_HEADER)
    return RoutingOptions(strong_fraction=named if given is None else _fraction_of_header(given, named))


def _there_are(ids: Mapping[Route, str], known: Sequence[str] | None) -> str:
    names = [FIREWALL, *ids.values()] if known is None else list(known)
    if FIREWALL in names:
        names.insert(1, f"{FIREWALL}-0.3 (any strong fraction from 0 to 1)")
    return f"There are: {', '.join(names)}."


def _fraction_of_header(given: str, named: float | None) -> float:
    found = re.fullmatch(r"\d+\.?\d*|\.\d+", given.strip(), re.ASCII)
    fraction = float(found.group()) if found else None
    if fraction is None or fraction > 1:
        raise RequestRefused(400, f"{FRACTION_HEADER}: must be a number from 0 to 1.", code="invalid_value", param=FRACTION_HEADER)
    if named is not None and named != fraction:
        message = f"{FRACTION_HEADER} and the model's name ask for different fractions. Leave one out."
        raise RequestRefused(400, message, code="invalid_value", param=FRACTION_HEADER)
    return fraction


def chat_text(messages: Sequence[Any], which: Literal["last_user", "conversation"]) -> str | None:
    """The text of a chat that the router reads: of the last user message that has any but blanks, or all that has been said.

    Text parts are joined by newlines, as vLLM joins them. Content may be a string, null, or parts, of which images and the
    like are passed over. None: no text.

    >>> chat_text([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, {"role": "assistant"}], "last_user")
    'Why?'
    """
    if which == "conversation":
        texts = [_content_text(message.get("content")) for message in messages if isinstance(message, dict)]
        return "\n".join(text for text in texts if text.strip()) or None
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            text = _content_text(message.get("content"))
            if text.strip():
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


def token_ids_of(prompt: Any) -> list[list[int]]:
    """The token ids of a completion's `prompt`, one list a prompt. Empty where it holds texts or what is no prompt.

    >>> token_ids_of([1, 2]), token_ids_of([[1], [2]]), token_ids_of("a"), token_ids_of([True])
    ([[1, 2]], [[1], [2]], [], [])
    """
    prompts = [prompt] if _are_ids(prompt) else prompt
    return list(prompts) if isinstance(prompts, list) and all(map(_are_ids, prompts)) else []


def _are_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and set(map(type, prompt)) == {int}
