"""Texts under which an engine crashed: not tried on another model, and after the second time refused for a while.

Lives in an ingress replica. Whoever else was asking that engine at that moment is under suspicion too, so nobody is for long.
"""

import time
from collections.abc import Callable
from hashlib import blake2b
from math import ceil
from typing import Any, NamedTuple

from cachetools import TTLCache
from pydantic_core import to_json

from firewall_ray.config.serving import Route
from serve_app.errors import RequestRefused

MAX_SUSPECTS = 10_000
FORGET_AFTER_S = 600.0


class Crash(NamedTuple):
    """The last one under a text. at: by the clock."""

    route: Route
    num_crashes: int
    at: float


class Suspects:
    """clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: TTLCache[bytes, Crash] = TTLCache(MAX_SUSPECTS, FORGET_AFTER_S, clock)

    def crashed(self, parsed: dict[str, Any], route: Route) -> None:
        """The engine of the model `route` did, while it worked on this request."""
        key = text_key(parsed)
        before = self._crashes.get(key)
        self._crashes[key] = Crash(route, 1 if before is None else before.num_crashes + 1, self._clock())

    def is_suspect(self, parsed: dict[str, Any], route: Route) -> bool:
        """Whether an engine crashed under it, of this very model. Raises RequestRefused where it may not be asked at all."""
        if not self._crashes:  # nearly always; a digest of a body with images takes as long as reading it did
            return False
        crash = self._crashes.get(text_key(parsed))
        if crash is None:
            return False
        if crash.num_crashes > 1 or crash.route != route:
            times = "Engines crashed" if crash.num_crashes > 1 else "Another model's engine crashed"
            left_s = ceil(crash.at + FORGET_AFTER_S - self._clock())
            raise RequestRefused(
                422, f"{times} while working on this text. It is not tried again for {left_s} s.", code="model_crashed"
            )
        return True


def text_key(parsed: dict[str, Any]) -> bytes:
    """A digest of what a request's model reads, whatever else is asked of it."""
    return blake2b(to_json([parsed.get("messages"), parsed.get("prompt")]), digest_size=16).digest()
