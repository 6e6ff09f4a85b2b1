"""How many requests of one API key are in flight, over all ingress replicas. Runs on ingress replicas.

Each counts its own. Where there may be several, the shared replica counts them together and decides, which is one call more for
each request with a key. Exact but for two moments: while a heartbeat is on its way, a request that begins just then may be counted
twice or not at all; and while the shared replica does not answer, the limit holds for each ingress replica by itself.
"""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.shared.client import TELL_EVERY_S, SharedState


class KeyPlaces:
    """limit: requests in flight for each key. shared: None where this is the only ingress replica. ingress: its id."""

    def __init__(self, limit: int, shared: SharedState | None = None, ingress: str = "") -> None:
        self._limit = limit
        self._shared = shared
        self._ingress = ingress
        self._taken: Counter[str] = Counter()
        self._leaving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[bool]:
        """A place for one request, until the block ends; False where there is none."""
        if self._taken[key] >= self._limit:  # as many as there may be at all are here
            yield False
            return
        self._taken[key] += 1
        try:
            if self._shared is None:
                yield True
                return
            granted = await self._shared.ask("enter", self._ingress, key, self._limit)
            try:
                yield granted is not False  # None: nobody answered
            finally:
                if granted is not False:
                    # Nobody waits for it: the client has its answer. Outside of the request, whose calls Serve may cancel.
                    leave = self._shared.ask("leave", self._ingress, key)
                    leaving = asyncio.create_task(leave, context=contextvars.Context())
                    self._leaving.add(leaving)
                    leaving.add_done_callback(self._leaving.discard)
        finally:
            self._taken[key] -= 1

    async def tell_forever(self) -> None:
        """Heartbeats with what is in flight here: a shared replica that started anew, or missed a word, counts right again."""
        while self._shared is not None:
            await self._shared.ask("tell", self._ingress, dict(+self._taken))  # +: without the keys that have none
            await asyncio.sleep(TELL_EVERY_S)
