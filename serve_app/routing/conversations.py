"""Which model a conversation began with, so that it stays there (`serving.sticky`) when the threshold moves or the router changes.

Lives in each ingress replica, and once more behind all of them where there may be several (`shared_conversations.py`).
"""

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from cachetools import TTLCache
from pydantic_core import to_json

from serve_app.routing.decision import Decision
from serve_app.routing.request import chat_text

HEADER = "x-firewall-conversation"
MAX_CONVERSATIONS = 100_000  # some hundred bytes each
FORGET_AFTER_S = 3_600.0  # a KV cache rarely outlives that


class Conversations:
    """Decisions by conversation key; of too many, those go that were not asked for the longest. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._decisions: TTLCache[bytes, Decision] = TTLCache(MAX_CONVERSATIONS, FORGET_AFTER_S, clock)

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

    def claim(self, key: bytes, decision: Decision) -> Decision:
        """What was decided first: `decision`, unless the conversation is known here."""
        if (known := self.recall(key)) is not None:
            return known
        self.remember(key, decision)
        return decision


class Conversation(NamedTuple):
    """key: see `conversation_key`. may_be_known: to another ingress replica; an unnamed conversation's first message cannot be."""

    key: bytes
    may_be_known: bool


def conversation_of(messages: Sequence[Any], strong_fraction: float | None, named: str | None, caller: str | None) -> Conversation:
    """The conversation that the messages of a request belong to; the other arguments as of `conversation_key`."""
    beginning = first_turn(messages)
    key = conversation_key(strong_fraction, beginning, named, caller)
    return Conversation(key, may_be_known=named is not None or len(messages) > len(beginning))


def first_turn(messages: Sequence[Any]) -> Sequence[Any]:
    """The messages up to the first user text, which every later turn of the conversation begins with too.

    >>> first_turn([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}])
    [{'role': 'user', 'content': 'Why?'}]
    """
    for end, message in enumerate(messages, start=1):
        if chat_text([message], "last_user") is not None:
            return messages[:end]
    return messages


def conversation_key(strong_fraction: float | None, beginning: Sequence[Any], given: str | None, caller: str | None) -> bytes:
    """A digest that every turn of a conversation shares: of the id `given` by the client, else of its `beginning`.

    strong_fraction: as the client asked for it, for at another one it is another conversation. caller: name of the API key,
    so that two callers' ids never meet.
    """
    # Of 128 bits, so that no two conversations of the same memory share one by chance.
    return blake2b(to_json([caller, strong_fraction, given or beginning]), digest_size=16).digest()
