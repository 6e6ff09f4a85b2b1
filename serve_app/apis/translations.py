"""The endpoints whose requests are chats in other words."""

from collections.abc import Callable, Mapping
from typing import Any

from serve_app.apis.chat_answers import Translation
from serve_app.apis.messages.answer import MessagesTranslation
from serve_app.apis.responses.answer import ResponsesTranslation

# Each raises RequestRefused of what is no request of that API, or none that a chat can serve.
TRANSLATIONS: Mapping[str, Callable[[dict[str, Any]], Translation]] = {
    "messages": MessagesTranslation,
    "responses": ResponsesTranslation,
}
