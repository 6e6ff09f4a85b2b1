"""The ledger of the shared replica and its file under ROOT/spending/, written about once a second. Runs in the shared replica.

Each shared replica writes a file of its own, with all that it knows: an old one that ends while a new one has begun can't undo what
that has written. Files of others are read at the start and twice a minute; they are deleted at the start, once their content is in
the own one.
"""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from uuid import uuid4

from firewall_ray.errors import FirewallRayError
from firewall_ray.store.dataset import Dataset
from serve_app.money.files import SpendingFiles
from serve_app.money.ledger import ALL, Ledger, Spent
from serve_app.money.periods import PERIODS

SAVE_EVERY_S = 1.0
READ_OTHERS_EVERY_S = 30.0

Record = Callable[[str, float, dict[str, str]], None]

logger = logging.getLogger("ray.serve")


class LedgerKeeper:
    """dataset: the folder. record: of metrics. clock: Unix seconds."""

    def __init__(self, dataset: Dataset, record: Record, clock: Callable[[], float] = time.time) -> None:
        self._record = record
        self._ledger = Ledger(clock)
        self._files = SpendingFiles(dataset, uuid4().hex[:12])
        self._loaded = asyncio.Event()
        self._saved_version = 0
        self._writing = threading.Lock()
        self._keeping: asyncio.Task[None] | None = None

    async def settle(self, ingress: str, totals: Mapping[str, Mapping[str, float]], keys: Collection[str] | None) -> Spent:
        """As `Ledger.settle`, once it is known what was spent before."""
        await self.loaded()
        return self._ledger.settle(ingress, totals, keys)

    async def loaded(self) -> None:
        """Waits until what was saved is read, where storage fails for as long as that takes."""
        if self._keeping is None:
            # Outside of this call, which Serve may cancel, and with it what was begun in it.
            self._keeping = asyncio.create_task(self._keep(), context=contextvars.Context())
        await self._loaded.wait()

    def close(self) -> None:
        """Save what is left. Blocks for as long as that takes."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._loaded.is_set() and self._ledger.version != self._saved_version:
            try:
                self._write(self._ledger.version, self._ledger.saved())
            except FirewallRayError as e:
                logger.error("What was spent since %.0f s before the end is lost: %s", SAVE_EVERY_S, e)

    async def _keep(self) -> None:
        """Until it is cancelled: read, then save what changed. What fails is tried again; meanwhile all of it is in memory."""
        is_failing, read_s = False, 0.0
        while True:
            began = time.monotonic()
            try:
                if not self._loaded.is_set():
                    await self._load()
                    read_s = began
                if began - read_s >= READ_OTHERS_EVERY_S:
                    self._merge(await asyncio.to_thread(self._files.read_others))
                    read_s = began
                if self._ledger.version != self._saved_version:
                    await self._save()
                is_failing = False
            except Exception as e:  # whatever befell it, it must go on
                if not is_failing:  # once an outage
                    logger.error("What was spent cannot be kept under ROOT; tried again until it can: %s", e)
                is_failing = True
            self._record_spent()
            # Where storage is slow, it is written less often.
            await asyncio.sleep(max(SAVE_EVERY_S, 4 * (time.monotonic() - began)))

    async def _load(self) -> None:
        """Also makes one file of those that there are."""
        others = await asyncio.to_thread(self._files.read_others)
        self._merge(others, awaits=True)
        self._loaded.set()
        if others:
            await self._save()
            await asyncio.to_thread(self._files.delete, others)

    def _merge(self, others: Mapping[str, Any], *, awaits: bool = False) -> None:
        for told in others.values():
            self._ledger.merge(told, awaits=awaits)

    async def _save(self) -> None:
        # Taken here, where nobody adds to it meanwhile; written in a thread, for which nobody waits.
        version, told = self._ledger.version, self._ledger.saved()
        await asyncio.to_thread(self._write, version, told)

    def _write(self, version: int, told: Mapping[str, Any]) -> None:
        """In a thread; at the end, not."""
        with self._writing:
            if version < self._saved_version:  # at the end: what is later was faster
                return
            self._files.write(told)
            self._saved_version = version

    def _record_spent(self) -> None:
        for period, by_key in zip(PERIODS, self._ledger.spent().usd.values(), strict=True):
            for key, usd in {ALL: 0.0, **by_key}.items():
                self._record("firewall_spent_usd", usd, {"key": key, "period": period})
