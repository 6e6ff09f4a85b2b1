"""What each key used of its requests and tokens a minute. Lives in the shared replica, and in an ingress replica that is alone.

A minute of a key begins with the first request after its last minute was over. What was used beyond the limit, since nobody knew
before how long an answer would be, is carried into the next minutes: over time nobody gets more than the limit a minute.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

MINUTE_S = 60.0


class Limits(NamedTuple):
    """A minute; None: no limit."""

    requests: int | None
    tokens: int | None


class Left(NamedTuple):
    """remaining: in this minute. reset_s: until all of the limit is there again."""

    remaining: int
    reset_s: float


class Taken(NamedTuple):
    """What became of a request that wants to begin. refused_by: None where it may. wait_s: until it may, where it may not now.
    tokens_began_s: of the minute that its tokens were taken from, by the counter's own clock.
    """

    refused_by: Literal["requests", "tokens"] | None
    wait_s: float
    requests: Left | None
    tokens: Left | None
    tokens_began_s: float


@dataclass(frozen=True)
class Grant:
    """A request that was counted. tokens: that were taken for it before anybody knew what it would use. by_shared: who counted."""

    limits: Limits
    taken: Taken
    tokens: int
    by_shared: bool

    def headers(self) -> dict[str, str]:
        """As OpenAI names them; of the limits that the key has.

        >>> taken = Taken(None, 0.0, None, Left(40, 12.5), 0.0)
        >>> Grant(Limits(None, 100), taken, 60, True).headers()["x-ratelimit-reset-tokens"]
        '13s'
        """
        headers = {}
        for what, limit, left in zip(Limits._fields, self.limits, (self.taken.requests, self.taken.tokens), strict=True):
            if limit is not None and left is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(left.remaining)
                headers[f"x-ratelimit-reset-{what}"] = f"{math.ceil(left.reset_s)}s"
        return headers


class Minute:
    """Of one limit of one key."""

    def __init__(self, now: float) -> None:
        self.began_s = now
        self.used = 0

    def move_to(self, now: float, limit: int) -> None:
        """To the minute that it is."""
        num_over = int((now - self.began_s) // MINUTE_S)
        if num_over > 0:
            self.used = max(0, self.used - num_over * limit)
            self.began_s += num_over * MINUTE_S
        if self.used == 0:
            self.began_s = now

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """Until there is room for so much, which is at most the limit; 0 where there is."""
        num_minutes = math.ceil((self.used + amount - limit) / limit)
        return 0.0 if num_minutes <= 0 else self.began_s + num_minutes * MINUTE_S - now

    def left(self, limit: int, now: float) -> Left:
        """What a client is told."""
        return Left(max(0, limit - self.used), max(0.0, self.began_s + math.ceil(self.used / limit) * MINUTE_S - now))


class KeyMinutes:
    """clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, Minute] = {}
        self._tokens: dict[str, Minute] = {}

    def take(self, key: str, limits: Limits, tokens: int) -> Taken:
        """One request, and so many tokens for it, at most a minute's: both or neither."""
        now = self._clock()
        requests, requests_wait_s = _looked_up(self._requests, key, limits.requests, 1, now)
        used, tokens_wait_s = _looked_up(self._tokens, key, limits.tokens, tokens, now)
        wait_s = max(requests_wait_s, tokens_wait_s)
        if wait_s == 0.0:
            requests.used += 1
            used.used += tokens
        return Taken(
            None if wait_s == 0.0 else "requests" if requests_wait_s >= tokens_wait_s else "tokens",
            wait_s,
            None if limits.requests is None else requests.left(limits.requests, now),
            None if limits.tokens is None else used.left(limits.tokens, now),
            used.began_s,
        )

    def correct(self, key: str, limit: int, began_s: float, more: int) -> None:
        """A request whose tokens were taken in the minute `began_s` used so many more, or fewer. What was taken in vain in a
        minute that is over is not given back.
        """
        now = self._clock()
        minute = self._tokens.setdefault(key, Minute(now))
        minute.move_to(now, limit)
        if more > 0 or minute.began_s == began_s:
            minute.used = max(0, minute.used + more)


def _looked_up(minutes: dict[str, Minute], key: str, limit: int | None, amount: int, now: float) -> tuple[Minute, float]:
    """The key's minute as it is now, and how long to wait for so much of it."""
    if limit is None:
        return Minute(now), 0.0  # counted by nobody
    minute = minutes.setdefault(key, Minute(now))
    minute.move_to(now, limit)
    return minute, minute.wait_s(amount, limit, now)
