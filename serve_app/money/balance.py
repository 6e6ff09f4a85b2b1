"""Dollars per 1,000 requests, and what was saved of them. Lives in an ingress replica, and counts since it started."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from serve_app.recording.exchange import Exchange

Z_95 = 1.96


@dataclass
class Account:
    """Requests that a model worked on, and what they cost."""

    num_requests: int = 0
    usd: float = 0.0

    def add(self, usd: float) -> None:
        self.num_requests += 1
        self.usd += usd

    def as_json(self) -> dict[str, Any]:
        """usd_per_1000_requests is None before the first."""
        per_1000 = 1_000 * self.usd / self.num_requests if self.num_requests else None
        return {"requests": self.num_requests, "usd": self.usd, "usd_per_1000_requests": per_1000}


@dataclass(frozen=True)
class Interval:
    """US dollars saved per 1,000 requests: the mean, and the 95% interval of it."""

    value: float
    low: float
    high: float


class Balance:
    """Of exchanges that have their cost; names of keys are the config's, so there is an end of them."""

    def __init__(self) -> None:
        self._all = Account()
        self._by_route: defaultdict[str, Account] = defaultdict(Account)
        self._by_endpoint: defaultdict[str, Account] = defaultdict(Account)
        self._by_key: defaultdict[str, Account] = defaultdict(Account)
        # Welford's: sums of squares would lose what small savings differ by.
        self._num_saved, self._mean_usd, self._squares = 0, 0.0, 0.0
        self._cost_usd = 0.0  # of these same requests

    def add(self, exchange: Exchange) -> None:
        """Does nothing where nothing is priced, or no model worked on it."""
        if exchange.cost_usd is None or exchange.asked is None or (exchange.status != 200 and not exchange.cost_usd):
            return
        accounts = [self._all, self._by_route[exchange.asked], self._by_endpoint[exchange.endpoint]]
        if exchange.key_name is not None:
            accounts.append(self._by_key[exchange.key_name])
        for account in accounts:
            account.add(exchange.cost_usd)
        if exchange.saved_usd is not None:
            self._num_saved += 1
            self._cost_usd += exchange.cost_usd
            off = exchange.saved_usd - self._mean_usd
            self._mean_usd += off / self._num_saved
            self._squares += off * (exchange.saved_usd - self._mean_usd)

    def saved(self) -> Interval | None:
        """Against the strong model for every request that a score decided. None before the second of them.

        The interval says how far the mean of so many requests may lie from that of all such requests (normal approximation); not
        how long the strong model's answers would have been.
        """
        if self._num_saved < 2:
            return None
        half = Z_95 * math.sqrt(self._squares / (self._num_saved - 1) / self._num_saved)
        return Interval(1_000 * self._mean_usd, 1_000 * (self._mean_usd - half), 1_000 * (self._mean_usd + half))

    def saved_fraction(self) -> float | None:
        """Of what the strong model would have cost for all of them; below 0 where the weak one is dearer. None as `saved` is."""
        saved_usd = self._num_saved * self._mean_usd
        strong_usd = saved_usd + self._cost_usd
        return saved_usd / strong_usd if self._num_saved > 1 and strong_usd > 0 else None

    def snapshot(self, key_name: str | None) -> dict[str, Any]:
        """JSON. key_name: of who asks; what others spend is not their business."""
        saved = self.saved()
        return {
            **self._all.as_json(),
            "by_route": {route: account.as_json() for route, account in self._by_route.items()},
            "by_endpoint": {endpoint: account.as_json() for endpoint, account in self._by_endpoint.items()},
            "this_key": None if key_name is None else self._by_key.get(key_name, Account()).as_json(),
            "saved_usd_per_1000_requests": saved and {**vars(saved), "requests": self._num_saved},
            "saved_fraction": self.saved_fraction(),
        }
