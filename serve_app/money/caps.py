"""Who may still spend (`serving.spend_caps`). Runs on ingress replicas.

Each adds up what its requests cost, tells the shared replica of each that is over at once, and asks it before a request begins,
which is one call more: for all that wait meanwhile the next one. So nobody begins once a cap is reached, and what is spent beyond
it is what was in flight. While the shared replica does not answer, or does not know all yet, each ingress replica lets begin until
it has spent its part of what was left when it last heard: the rest of each cap, divided by the number of ingress replicas.
"""

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from firewall_ray.config.money import SpendCapConfig, SpendCapsConfig
from firewall_ray.errors import FirewallRayError
from firewall_ray.store.dataset import Dataset
from serve_app.errors import RequestRefused
from serve_app.money.files import SpendingFiles
from serve_app.money.ledger import ALL, Spent, Totals
from serve_app.money.periods import PERIODS, Period, end_of, kept, name_of
from serve_app.recording.exchange import Exchange
from serve_app.shared.client import TELL_EVERY_S, SharedState

RETRY_AFTER_S = 1
ANSWER_WITHIN_S = 2.0  # waited for once an outage, and only by those who ask just then
NEARLY = 1 - 1e-9  # ten times nine cents are a little less than 90, or not, by the order in which they were added up

logger = logging.getLogger("ray.serve")


class Cap(NamedTuple):
    """key: name of the API key, or ALL. field: of the config."""

    key: str
    period: Period
    usd: float
    field: str


class Known(NamedTuple):
    """What the shared replica said, in US dollars: spent over all ingress replicas, and of that by this one."""

    usd: float
    own_usd: float


class SpendCaps:
    """An observer of exchanges that have their cost. ingress: this replica's id, which none had before it. spending: where what was
    spent is kept. clock: Unix seconds.
    """

    def __init__(
        self,
        config: SpendCapsConfig,
        shared: SharedState,
        ingress: str,
        spending: Dataset,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._shared = shared
        self._ingress = ingress
        self._spending = spending
        self._clock = clock
        self._own: Totals = {}
        self._known: dict[tuple[str, str], Known] = {}  # by name of the period and key
        self._num_ingresses: int | None = None  # None until the shared replica answered
        self._is_answered = True  # by one that knows all
        self._is_heard = False
        # What the next call tells and asks: of all keys, or of these.
        self._all_keys = True
        self._keys: set[str] = set()
        self._call: asyncio.Task[None] | None = None
        self._next_call: asyncio.Task[None] | None = None

    async def check(self, key: str | None) -> None:
        """Raises RequestRefused where a request with this key may not begin."""
        caps = list(self._caps_of(key))
        if not caps:
            return
        if self._is_answered:  # else the next heartbeat finds out, and nobody waits for it
            await self._told({cap.key for cap in caps})
        now = self._clock()
        if reached := [cap for cap in caps if self._spent_usd(cap, now) >= cap.usd * NEARLY]:
            raise _refusal(max(reached, key=lambda cap: end_of(cap.period, now)), now)
        if not self._is_answered and not all(self._is_within_part(cap, now) for cap in caps):
            message = "What was spent so far is not known just now, so no request may begin (serving.spend_caps). Try again."
            raise RequestRefused(503, message, code="spending_unknown", retry_after_s=RETRY_AFTER_S)

    def record(self, exchange: Exchange) -> None:
        """As the protocol says. To be called in the event loop."""
        if not exchange.cost_usd:
            return
        now = self._clock()
        keys = {ALL} if exchange.key_name is None else {ALL, exchange.key_name}
        for period in PERIODS:
            own = self._own.setdefault(name_of(period, now), {})
            for key in keys:
                own[key] = own.get(key, 0.0) + exchange.cost_usd
        self._keys |= keys
        self._call_soon()

    async def tell_forever(self) -> None:
        """Heartbeats with all there is: a shared replica that began anew, or missed a word, knows it again."""
        while True:
            await self.tell()
            await asyncio.sleep(TELL_EVERY_S)

    async def tell(self) -> None:
        """Everything, once."""
        current = kept(self._clock())
        self._own = {period: by_key for period, by_key in self._own.items() if period in current}
        self._known = {(period, key): known for (period, key), known in self._known.items() if period in current}
        self._all_keys = True
        await self._told(())

    async def close(self) -> None:
        """Tells everything, and where nobody hears it, writes it for the next shared replica: the last requests of an application
        that is deleted may end when its shared replica is gone.
        """
        await self.tell()
        if self._is_heard:
            return
        told = {self._ingress: {"heard_s": 0.0, "usd": self._own}}  # long ago: nobody shall wait for this replica
        try:
            await asyncio.to_thread(SpendingFiles(self._spending, self._ingress).write, told)
        except FirewallRayError as e:
            logger.error("What was spent here, and not told any more, is lost: %s", e)

    # Caps ------------------------------------------------------------------------------------------------------------

    def _caps_of(self, key: str | None) -> Iterator[Cap]:
        yield from _caps(ALL, self._config.all, "all")
        if key is not None:
            named = self._config.keys.get(key)
            yield from _caps(key, named or self._config.per_key, "per_key" if named is None else f"keys.{key}")

    def _spent_usd(self, cap: Cap, now: float) -> float:
        """As far as this replica knows."""
        known = self._known_of(cap, now)
        return known.usd + self._own_usd(cap, now) - known.own_usd

    def _is_within_part(self, cap: Cap, now: float) -> bool:
        """Whether this replica has spent less than its part of what was left when it last heard."""
        known = self._known_of(cap, now)
        own_since_usd = self._own_usd(cap, now) - known.own_usd
        return self._num_ingresses is not None and own_since_usd < (cap.usd - known.usd) / self._num_ingresses

    def _own_usd(self, cap: Cap, now: float) -> float:
        return self._own.get(name_of(cap.period, now), {}).get(cap.key, 0.0)

    def _known_of(self, cap: Cap, now: float) -> Known:
        # Nothing is known of a period that has just begun, nor of a key of which the shared replica never heard.
        return self._known.get((name_of(cap.period, now), cap.key), Known(0.0, 0.0))

    # Calls -----------------------------------------------------------------------------------------------------------

    async def _told(self, keys: Collection[str]) -> None:
        """Waits for a call that begins after now."""
        self._keys.update(keys)
        await asyncio.shield(self._call_soon())  # which is others' too, when this one's client leaves

    def _call_soon(self) -> asyncio.Task[None]:
        """The call that begins when the one under way has ended."""
        if self._next_call is None:
            # Outside of the request that happens to be here, with which Serve would cancel it.
            self._next_call = asyncio.create_task(self._settle(self._call), context=contextvars.Context())
        return self._next_call

    async def _settle(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._call, self._next_call = self._next_call, None  # who comes from now on waits for the next
        keys = None if self._all_keys else self._keys
        self._keys, self._all_keys = set(), False
        told: Totals = {
            period: {key: usd for key, usd in by_key.items() if keys is None or key in keys} for period, by_key in self._own.items()
        }
        answer: Spent | None = await self._shared.ask("settle", self._ingress, told, keys)
        self._is_heard = answer is not None
        self._is_answered = answer is not None and answer.is_complete
        # Of an answer that lacks something, parts would be taken again and again of what others have spent already; but for a
        # replica that knows nothing it is better than nothing.
        if answer is None or (not answer.is_complete and self._num_ingresses is not None):
            return
        self._num_ingresses = answer.num_ingresses
        for period, by_key in answer.usd.items():
            own = told.get(period, {})
            self._known |= {(period, key): Known(usd, own.get(key, 0.0)) for key, usd in by_key.items()}


def _caps(key: str, config: SpendCapConfig, field: str) -> Iterator[Cap]:
    for period in PERIODS:
        usd: float | None = getattr(config, period)
        if usd is not None:
            yield Cap(key, period, usd, f"serving.spend_caps.{field}.{period}")


def _refusal(cap: Cap, now: float) -> RequestRefused:
    end = end_of(cap.period, now)
    who = "All requests together have" if cap.key == ALL else "This API key has"
    message = (
        f"{who} spent what is allowed a {cap.period} ({cap.field}: {cap.usd:g} US dollars). Again from {end:%Y-%m-%dT%H:%M:%SZ}."
    )
    # Rounded up: a second too early would be refused again.
    return RequestRefused(429, message, code="spend_cap_reached", retry_after_s=math.ceil(end.timestamp() - now))
