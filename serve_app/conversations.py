"""Which model a conversation began with, so that it stays there (`serving.sticky`). Lives in an ingress replica.

The first turn decides, by the first user text. Another ingress replica, which never saw that turn, reads the same text and
decides the same; this memory holds a conversation where it is when the threshold moves or the router changes meanwhile.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from cachetools import TTLCache
from pydantic_core import to_json

from serve_app.decision import Decision

HEADER = "x-firewall-conversation"
MAX_CONVERSATIONS = 100_000  # some hundred bytes each
FORGET_AFTER_S = 3_600.0  # a KV cache rarely outlives that


class Conversations:
    """Decisions by conversation key."""

    def __init__(self) -> None:
        self._decisions: TTLCache[bytes, Decision] = TTLCache(MAX_CONVERSATIONS, FORGET_AFTER_S)

    def recall(self, key: bytes) -> Decision | None:
        """What was decided when the conversation began; None when that is not known here. Starts its hour again."""
        decision = self._decisions.get(key)
        if decision is not None:
            self._decisions[key] = decision
        return decision

    def remember(self, key: bytes, decision: Decision) -> None:
        """Only what a score decided: after a failure of the router the next turn asks it again."""
        if decision.reason == "score":
            self._decisions[key] = decision


def conversation_key(model: str, messages: Sequence[Any], given: str | None, caller: str | None) -> bytes:
    """A digest that every turn of a conversation shares: of the id `given` by the client, else of how it began.

    model: as the client named it, for a conversation at another strong fraction is another one. caller: of the API key, so
    that two callers' ids never meet.
    """
    beginning: list[Any] = []
    for message in messages:
        beginning.append(message)
        if isinstance(message, dict) and message.get("role") == "user":
            break
    return blake2b(to_json([caller, model, given or beginning]), digest_size=16).digest()
