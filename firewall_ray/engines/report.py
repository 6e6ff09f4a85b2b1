"""What a sampling actor tells about its work: to the driver's progress, about once a second, and to Ray's dashboard."""

import logging
import os
import threading
import time
from collections import Counter as Sums
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Counter

# As often as the driver reads (`progress.POLL_S`): more messages would change nothing that is seen.
EVERY_S = 1.0


class EngineReport:
    """progress: the driver's counter (see `progress.watch`), or None. May be used from several threads."""

    def __init__(self, model: str, progress: Any) -> None:
        self._model = model
        self._progress = progress
        # Ray gives an actor that it starts again the same id, so the new process' state takes the place of the dead one's.
        self._actor = (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or str(os.getpid())
        self._metrics = {
            "rows": Counter("firewall_sampling_rows", "Queries sampled.", tag_keys=("model",)),
            "tokens": Counter("firewall_sampling_tokens", "Tokens generated, the n samples only.", tag_keys=("model",)),
            "errors": Counter("firewall_sampling_errors", "Queries that failed and became rows with `error`.", tag_keys=("model",)),
        }
        for metric in self._metrics.values():
            metric.set_default_tags({"model": model})
        self._lock = threading.Lock()
        self._untold: Sums[str] = Sums()
        self._levels: dict[str, int] = {}  # requests by "running" and "waiting"
        self._told_levels: dict[str, int] = {}
        self._next_s = 0.0
        self._state = ""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of `samples/` that is done."""
        amounts = {
            "rows": 1,
            "tokens": sum(count or 0 for count in row["num_generated_tokens"] or ()),
            "errors": int(row["error"] is not None),
        }
        for name, amount in amounts.items():
            if amount:
                self._metrics[name].inc(amount)
        self.add({"rows": 1, "errors": amounts["errors"]})
        self.state("sampling")

    def add(self, amounts: Mapping[str, float], *, at_once: bool = False) -> None:
        """Amounts for the driver: `rows`, `errors`, `tokens`, `requests` that were answered, and `work`, their worth in rows."""
        if self._progress is None:
            return
        with self._lock:
            self._untold.update(amounts)  # Counter.update adds
            now = time.monotonic()
            if now < self._next_s and not at_once:
                return
            # Under the lock only the taking: the calls below are sent without it, and nobody waits for their answers.
            told, self._untold, self._next_s = self._untold, Sums(), now + EVERY_S
            levels = None if self._levels == self._told_levels else dict(self._levels)
            self._told_levels = dict(self._levels)
        if any(told.values()):
            self._progress.add.remote(self._model, dict(told))
        if levels is not None:
            self._progress.state.remote(self._model, self._actor, self._state, levels)

    def flush(self) -> None:
        """Tell what is untold, where nothing may follow for a while."""
        self.add({}, at_once=True)

    @property
    def is_due(self) -> bool:
        """Whether what is added now would be told now: for what costs something to find out."""
        return self._progress is not None and time.monotonic() >= self._next_s

    def level(self, name: str, change: int) -> None:
        """`change` more of what the actor has in hand: requests that run, or wait."""
        with self._lock:
            self._levels[name] = self._levels.get(name, 0) + change

    def levels(self, levels: Mapping[str, int]) -> None:
        """All that the actor has in hand now."""
        with self._lock:
            self._levels = dict(levels)

    def state(self, text: str) -> None:
        """What the actor is doing from now on."""
        if self._progress is not None and text != self._state:
            self._state = text
            self._progress.state.remote(self._model, self._actor, text, dict(self._levels))

    def warn(self, line: str) -> None:
        """A line for the driver's log, and this process' own."""
        logging.getLogger(__name__).warning("%s", line)
        if self._progress is not None:
            self._progress.say.remote(line, logging.WARNING)
