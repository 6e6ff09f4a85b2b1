"""What was spent in all, from what each ingress replica says that it has spent itself. Lives in the shared replica.

An ingress replica tells its own totals, which only grow: told twice they count once, and a word that was lost is in the next one.
So what is kept of each is the largest total that was heard, and two ledgers become one by the larger of both, entry by entry. A
shared replica that starts anew reads what those before it have saved, and the ingress replicas that live tell it the rest.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.money.periods import PERIODS, kept, name_of
from serve_app.shared.client import TELL_EVERY_S

ALL = "*"  # in place of a key's name: all requests together; no key has this name

Totals = dict[str, dict[str, float]]  # US dollars, by name of the period and name of the key

HERE_S = 5 * TELL_EVERY_S  # who told nothing for so long is not counted among the ingress replicas that there are
LATELY_S = 60.0  # a shared replica is back sooner than that; those that an older one heard of may be gone
AWAITED_S = 5.0  # how long a new shared replica waits for those that there were


@dataclass(frozen=True)
class Spent:
    """usd: in the day and month that it is, over all ingress replicas. is_complete: False while one of them that lived when the
    shared replica before this one ended has not told everything yet. num_ingresses: that there are.
    """

    usd: Totals
    is_complete: bool
    num_ingresses: int


class Ledger:
    """clock: Unix seconds, since they are compared with those of a process before this one."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._told: dict[str, Totals] = {}  # by ingress replica
        self._heard_s: dict[str, float] = {}
        self._sums: Totals = {}
        self._awaited: set[str] = set()
        self._awaited_until_s = 0.0
        self.version = 0  # counts the changes

    def settle(self, ingress: str, totals: Mapping[str, Mapping[str, float]], keys: Collection[str] | None) -> Spent:
        """What an ingress replica has spent since it started, of these keys or, when None, of all; answered with all's of them."""
        self._heard_s[ingress] = self._clock()
        self._take(ingress, totals)
        if keys is None:
            self._awaited.discard(ingress)
        return self.spent(keys)

    def spent(self, keys: Collection[str] | None = None) -> Spent:
        """keys: None for all of which anything is known."""
        now = self._clock()
        here = {ingress for ingress, heard_s in self._heard_s.items() if now - heard_s <= HERE_S}
        if now >= self._awaited_until_s:
            self._awaited.clear()
        usd: Totals = {}
        for period in (name_of(each, now) for each in PERIODS):
            sums = self._sums.get(period, {})
            usd[period] = {key: sums.get(key, 0.0) for key in (sums if keys is None else keys)}
        return Spent(usd, not self._awaited, len(here | self._awaited))

    def saved(self) -> dict[str, Any]:
        """A copy as JSON, by ingress replica, for `merge`. Forgets the periods that are over."""
        current = kept(self._clock())
        told = {i: {period: by_key for period, by_key in totals.items() if period in current} for i, totals in self._told.items()}
        self._told = {ingress: totals for ingress, totals in told.items() if totals}
        self._sums = {period: by_key for period, by_key in self._sums.items() if period in current}
        return {
            ingress: {
                "heard_s": self._heard_s.get(ingress, 0.0),
                "usd": {period: dict(by_key) for period, by_key in totals.items()},
            }
            for ingress, totals in self._told.items()
        }

    def merge(self, others: Mapping[str, Any], *, awaits: bool = False) -> None:
        """What another shared replica has saved. awaits: answers are incomplete until those that told it lately have told all."""
        current, now = kept(self._clock()), self._clock()
        last_s = max((told["heard_s"] for told in others.values()), default=0.0)
        for ingress, told in others.items():
            self._take(ingress, {period: by_key for period, by_key in told["usd"].items() if period in current})
            self._heard_s[ingress] = max(told["heard_s"], self._heard_s.get(ingress, 0.0))
            if awaits and now - last_s <= LATELY_S and last_s - told["heard_s"] <= HERE_S:
                self._awaited.add(ingress)
                self._awaited_until_s = now + AWAITED_S

    def _take(self, ingress: str, totals: Mapping[str, Mapping[str, float]]) -> None:
        known = self._told.setdefault(ingress, {})
        for period, by_key in totals.items():
            known_of, sums = known.setdefault(period, {}), self._sums.setdefault(period, {})
            for key, usd in by_key.items():
                more = usd - known_of.get(key, 0.0)
                if more > 0:
                    known_of[key] = usd
                    sums[key] = sums.get(key, 0.0) + more
                    self.version += 1
