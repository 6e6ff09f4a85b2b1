"""Which model a conversation began with, so that it stays there (`serving.sticky`) when the threshold moves or the router changes.

Lives in each ingress replica, and once more behind all of them where there may be several (`serve_app/shared`): else each would
decide a conversation anew that another one began. The shared memory is asked when a replica has not seen a conversation yet, which
is once a conversation and replica. Whoever claims one first has decided it, so turns that come to several replicas at once agree.
"""

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from cachetools import TTLCache
from pydantic_core import to_json

from serve_app.routing.decision import Decision
from serve_app.routing.request import chat_text
from serve_app.shared.client import SharedState

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


class KnownConversations:
    """[ingress process] This replica's memory, and behind it the shared one. shared: None where there is but one replica."""

    def __init__(self, shared: SharedState | None) -> None:
        self._own = Conversations()
        self._shared = shared

    async def recall(self, conversation: Conversation) -> Decision | None:
        """What was decided when the conversation began; None where that is not known."""
        known = self._own.recall(conversation.key)
        if known is None and conversation.may_be_known and self._shared is not None:
            known = await self._shared.ask("recall", conversation.key)
            if known is not None:
                self._own.remember(conversation.key, known)
        return known

    async def decided(self, conversation: Conversation, decision: Decision) -> Decision:
        """What holds from now on: the decision, or the one that another replica has made of the same conversation meanwhile."""
        if decision.reason != "score" or self._shared is None:
            self._own.remember(conversation.key, decision)
            return decision
        first = await self._shared.ask("claim", conversation.key, decision) or decision  # without an answer this one holds, here
        self._own.remember(conversation.key, first)
        return decision if first == decision else first.sticky()


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
