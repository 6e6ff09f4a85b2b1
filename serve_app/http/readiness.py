"""Whether router and models answer, for everybody who asks: looked up once for many. Runs on ingress replicas.

/ready needs no key, and a look costs a scoring and a call to each model, of which one may be bought.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serve_app.models.answers import NotReady

LOOK_S = 5.0  # a look takes at most
GOOD_S = 5.0  # a good result is as good for so long: probes come every five to ten seconds
BAD_S = 1.0  # and a bad one: whoever waits for the application sees it come up

Checks = Mapping[str, Callable[[], Awaitable[Any]]]


class Readiness:
    """checks: each raises what is wrong, by name. clock: seconds."""

    def __init__(self, checks: Checks, clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = checks
        self._clock = clock
        self._look: asyncio.Task[dict[str, str]] | None = None
        self._good_until = 0.0
        self._found: dict[str, str] = {}

    async def problems(self) -> dict[str, str]:
        """What is wrong, by name; empty when all is well. Whoever asks during a look gets its result."""
        if self._clock() < self._good_until:
            return self._found
        if self._look is None:
            self._look = asyncio.create_task(self._looked())
        return await asyncio.shield(self._look)  # a client that leaves ends it for nobody else

    async def _looked(self) -> dict[str, str]:
        try:
            checking = (asyncio.wait_for(check(), LOOK_S) for check in self._checks.values())
            results = await asyncio.gather(*checking, return_exceptions=True)
            found = {name: _words(e) for name, e in zip(self._checks, results, strict=True) if isinstance(e, BaseException)}
            self._found, self._good_until = found, self._clock() + (BAD_S if found else GOOD_S)
            return found
        finally:
            self._look = None


def _words(error: BaseException) -> str:
    """Others' words may repeat what is nobody's business."""
    return str(error) if isinstance(error, NotReady) else type(error).__name__
