"""What the router reads of a request: a chat's text, a completion's prompts, or the texts of its token ids. On ingress replicas."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from firewall_ray.config.serving import Route, ServingConfig
from serve_app.errors import RequestRefused
from serve_app.models.answers import Endpoint
from serve_app.models.client import ModelClient
from serve_app.models.token_ids import texts_of_ids
from serve_app.routing.conversations import first_turn
from serve_app.routing.request import chat_text, prompts_of, token_ids_of

MAX_PROMPTS = 2_048  # of one /v1/route; millions fit into a body


class Text(NamedTuple):
    """What the router reads of a request. are_questions: to be put into the prompt template; else whole prompts."""

    texts: list[str]
    are_questions: bool


class TextReader:
    """ids: what clients call the models."""

    def __init__(self, models: Mapping[Route, ModelClient], ids: Mapping[Route, str], serving: ServingConfig) -> None:
        self._models = {ids[route]: model for route, model in models.items()}
        self._serving = serving

    def of(self, endpoint: Endpoint, parsed: dict[str, Any]) -> Text:
        """Without texts where there are none, or only token ids. Raises RequestRefused."""
        if endpoint == "completions":
            texts = prompts_of(parsed.get("prompt"))
            if max(len(texts), len(token_ids_of(parsed.get("prompt")))) > MAX_PROMPTS:
                raise RequestRefused(400, f"prompt: at most {MAX_PROMPTS:,} texts a request.", code="invalid_value", param="prompt")
            return Text(texts, are_questions=False)
        messages = parsed.get("messages")
        if not isinstance(messages, list):
            raise RequestRefused(400, "messages: must be a list of messages.", code="invalid_type", param="messages")
        text = chat_text(first_turn(messages) if self._serving.sticky else messages, self._serving.chat_text)
        return Text([text] if text else [], are_questions=True)

    def of_either(self, parsed: dict[str, Any]) -> Text:
        """As `of`, of a body that is a chat's or a completion's."""
        if (parsed.get("messages") is None) == (parsed.get("prompt") is None):
            message = "Give `messages`, as for a chat, or `prompt`, as for a completion."
            raise RequestRefused(400, message, code="invalid_value", param="messages")
        return self.of("chat" if parsed.get("prompt") is None else "completions", parsed)

    async def decoded(self, text: Text, parsed: dict[str, Any]) -> Text:
        """The text, or that of the prompt's token ids."""
        ids = [] if text.are_questions else token_ids_of(parsed.get("prompt"))
        if not ids:
            return text
        texts = await texts_of_ids(ids, self._models, self._serving.router_timeout_s)
        return text if texts is None else Text(texts, are_questions=False)
