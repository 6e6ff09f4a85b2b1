"""What the judge has said -> judge_cache/, a row a question that it was asked; read whole when a judge begins.

Runs where the judge runs. Keys are hashes of all that decides a verdict, so rows are never wrong, only unused: any number of judges
may add files of their own at the same time, on any filesystem, and a row that is there twice does no harm. It has no manifest.
"""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from firewall_ray.schemas import JUDGEMENTS
from firewall_ray.store.dataset import Dataset

FLUSH_ROWS = 4_096
FLUSH_S = 10.0  # what a kill may lose; at six small files a minute


def cache_key(kind: str, model: str, prompt: str, settings: Mapping[str, Any]) -> str:
    """128 bits of SHA-256. kind: which verdicts are asked for; prompt: whole, with rubric and texts."""
    return hashlib.sha256(json.dumps([kind, model, prompt, settings], sort_keys=True).encode()).hexdigest()[:32]


class VerdictCache:
    """forget_unreadable: answers without a verdict count as not there, so that they are asked for again."""

    def __init__(self, dataset: Dataset, *, forget_unreadable: bool = False) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._oldest = 0.0
        self._verdicts: dict[str, str | None] = {}
        for batch in dataset.iter_batches(["key", "verdict"]):
            for key, verdict in zip(batch["key"].to_pylist(), batch["verdict"].to_pylist(), strict=True):
                # A question that was asked again after all has a row with a verdict beside the one without.
                if verdict is not None or not (forget_unreadable or key in self._verdicts):
                    self._verdicts[key] = verdict

    def __contains__(self, key: str) -> bool:
        return key in self._verdicts

    def __getitem__(self, key: str) -> str | None:
        """The verdict; None for an answer in which none could be read."""
        return self._verdicts[key]

    def add(self, key: str, model: str, verdict: str | None, answer: str) -> None:
        with self._lock:
            if not self._waiting:
                self._oldest = time.monotonic()
            self._verdicts[key] = verdict
            row = {"key": key, "model": model, "verdict": verdict, "answer": answer, "judged_at": datetime.now(UTC)}
            self._waiting.append(row)

    @property
    def is_due(self) -> bool:
        return len(self._waiting) >= FLUSH_ROWS or (bool(self._waiting) and time.monotonic() - self._oldest > FLUSH_S)

    def flush(self) -> None:
        """Write what waits, as a file of its own. Of any thread. Raises StorageFailure."""
        with self._lock:
            rows, self._waiting = self._waiting, []
        if rows:
            self._dataset.append(pa.Table.from_pylist(rows, schema=JUDGEMENTS), f"part-{uuid.uuid4().hex}.parquet")
