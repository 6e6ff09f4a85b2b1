"""Requests and tokens a minute of each API key (`requests_per_minute`, `tokens_per_minute`). Runs on ingress replicas.

Where there may be several, the shared replica counts for all of them, which is one call more for each request of a key with a
limit. While it does not answer, each ingress replica lets begin its part, the limit divided by the most that there may be.
"""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable

from firewall_ray.config.serving import ServingConfig
from serve_app.errors import RequestRefused
from serve_app.recording.exchange import Exchange
from serve_app.shared.client import SharedState
from serve_app.shared.minutes import Grant, KeyMinutes, Limits, Taken


class KeyLimits:
    """An observer, for what was used is known at the end. shared: None where this is the only ingress replica. clock: seconds."""

    def __init__(
        self, serving: ServingConfig, shared: SharedState | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        limits = {key.name: Limits(key.requests_per_minute, key.tokens_per_minute) for key in serving.keys}
        self._limits = {name: each for name, each in limits.items() if each != (None, None)}
        self._shared = shared
        self._own = KeyMinutes(clock)
        self._num_parts = 1 if shared is None else serving.ingress_replicas.max
        self._correcting: set[asyncio.Task[None]] = set()

    async def begin(self, key_name: str | None, tokens: int) -> Grant | None:
        """Counts a request that may come to so many tokens; None where its key has no limits. Raises RequestRefused beyond them."""
        limits = self._limits.get(key_name) if key_name is not None else None
        if limits is None or key_name is None:
            return None
        reserved = _at_most(tokens, limits)
        taken: Taken | None = None
        if self._shared is not None:
            taken = await self._shared.ask("take", key_name, limits, reserved)
        by_shared = taken is not None
        if taken is None:
            limits = Limits(*(each and max(1, each // self._num_parts) for each in limits))
            reserved = _at_most(tokens, limits)
            taken = self._own.take(key_name, limits, reserved)
        grant = Grant(limits, taken, reserved, by_shared)
        if taken.refused_by is not None:
            raise _refusal(grant)
        return grant

    def record(self, exchange: Exchange) -> None:
        """As the protocol says: what was taken for it becomes what it used. To be called in the event loop."""
        grant = exchange.grant
        if grant is None or grant.limits.tokens is None or exchange.key_name is None:
            return
        if exchange.usage is not None:
            used = exchange.usage.prompt_tokens + exchange.usage.completion_tokens
        else:
            used = grant.tokens if exchange.may_have_used_tokens else 0
        if used == grant.tokens:
            return
        correction = exchange.key_name, grant.limits.tokens, grant.taken.tokens_began_s, used - grant.tokens
        if self._shared is None or not grant.by_shared:
            self._own.correct(*correction)
            return
        # Nobody waits for it. Outside of the request, whose calls Serve may cancel.
        correcting = asyncio.create_task(self._shared.ask("correct", *correction), context=contextvars.Context())
        self._correcting.add(correcting)
        correcting.add_done_callback(self._correcting.discard)


def _at_most(tokens: int, limits: Limits) -> int:
    """A request that may come to more than a minute's takes a whole minute, and what it used beyond that afterwards."""
    return 0 if limits.tokens is None else min(tokens, limits.tokens)


def _refusal(grant: Grant) -> RequestRefused:
    what = grant.taken.refused_by or "requests"
    retry_after_s = max(1, math.ceil(grant.taken.wait_s))
    message = f"This API key has used its {what} of this minute ({what}_per_minute: {getattr(grant.limits, what):,})."
    return RequestRefused(
        429,
        f"{message} Again in {retry_after_s} s.",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
        headers=grant.headers(),
    )
