"""Progress of long stages: actors count what is done, the driver shows it.

`ProgressCounter` runs as an actor of no CPU; workers add to it after every batch. `watch` shows its numbers on stderr, as a
live bar in a terminal and as a line now and then elsewhere (CI, `ray job logs`). Workers' own output stays in Ray's logs.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from firewall_ray.job import console

logger = logging.getLogger(__name__)

POLL_S = 1.0
LOG_EVERY_S = 15.0


class ProgressCounter:
    """Sums of named amounts by key, for example ``{"weak": {"rows": 640, "tokens": 81_920, "errors": 0}}``."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._lines: list[str] = []

    def add(self, key: str, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._sums[key][name] += amount

    def say(self, line: str) -> None:
        """A line for the driver's log, such as an epoch's losses."""
        self._lines.append(line)

    def read(self) -> tuple[dict[str, dict[str, float]], list[str]]:
        """All sums, and the lines said since the last call."""
        lines, self._lines = self._lines, []
        return {key: dict(sums) for key, sums in self._sums.items()}, lines


class DriverHandler(logging.Handler):
    """Sends a worker's log lines to the driver's log, through the counter that `watch` yields."""

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        self._counter.say.remote(self.format(record))


@contextmanager
def watch(stage: str, totals: Mapping[str, int], done: Mapping[str, int] | None = None) -> Iterator[Any]:
    """Yields the counter's actor handle; while the body runs, shows `rows` of each key against its total.

    `totals` and `done`: rows of each key in all, and those that an earlier run had done already.
    """
    # On the driver's node, not on one that may go while the stage goes on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    counter = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressCounter).remote()
    finished = threading.Event()
    show = _show_bars if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(stage, counter, dict(totals), dict(done or {}), finished), daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        finished.set()
        thread.join(timeout=10)
        ray.kill(counter)


def _show_bars(stage: str, counter: Any, totals: dict[str, int], done: dict[str, int], finished: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {
            key: progress.add_task(f"{stage} {key}", total=total, completed=done.get(key, 0), rates="starting")
            for key, total in totals.items()
        }
        meters = {key: _Meter(total - done.get(key, 0)) for key, total in totals.items()}
        rows_left = _RowsLeft(stage, totals, done)
        while True:
            last = finished.wait(POLL_S)
            sums_of = _read(counter)
            rows_left.report(sums_of)
            for key, sums in sums_of.items():
                completed = _completed(totals[key], done.get(key, 0), sums)
                progress.update(bars[key], completed=completed, rates=meters[key].describe(sums))
            if last:
                return


def _show_lines(stage: str, counter: Any, totals: dict[str, int], done: dict[str, int], finished: threading.Event) -> None:
    meters = {key: _Meter(total - done.get(key, 0)) for key, total in totals.items()}
    rows_left = _RowsLeft(stage, totals, done)
    next_line_at = time.monotonic() + LOG_EVERY_S
    while True:
        last = finished.wait(POLL_S)
        sums_of = _read(counter)
        rows_left.report(sums_of)
        if last or time.monotonic() >= next_line_at:
            next_line_at = time.monotonic() + LOG_EVERY_S
            for key, total in totals.items():
                sums = sums_of.get(key, {})
                completed = _completed(total, done.get(key, 0), sums)
                rates = meters[key].describe(sums)
                left_s = (total - completed) / meters[key].rows_per_s if meters[key].rows_per_s else None
                eta = f", {left_s:,.0f} s left" if left_s else ""
                logger.info("%s %s: %s of %s rows, %s%s", stage, key, f"{completed:,}", f"{total:,}", rates, eta)
        if last:
            return


def _read(counter: Any) -> dict[str, dict[str, float]]:
    """The counter's sums; the lines it was told go to the log."""
    try:
        sums, lines = ray.get(counter.read.remote(), timeout=5)
    except ray.exceptions.RayError:
        return {}  # progress is for looking at; a missed reading must not disturb the stage
    for line in lines:
        logger.info("%s", line)
    return sums


def _completed(total: int, done: int, sums: Mapping[str, float]) -> int:
    """Rows of a batch that a dead worker had counted are counted again by the next one, so the sum can exceed the total."""
    return min(total, done + int(sums.get("rows", 0)))


class _RowsLeft:
    """The gauge that dashboards read an ETA from and that alerts on what stalls. It ends with the driver, as its job does."""

    def __init__(self, stage: str, totals: Mapping[str, int], done: Mapping[str, int]) -> None:
        self._stage = stage
        self._totals = totals
        self._done = done
        self._gauge = Gauge("firewall_stage_rows_left", "Rows that a running stage has still to do.", tag_keys=("stage", "key"))

    def report(self, sums_of: Mapping[str, Mapping[str, float]]) -> None:
        for key, total in self._totals.items():
            left = total - _completed(total, self._done.get(key, 0), sums_of.get(key, {}))
            self._gauge.set(left, {"stage": self._stage, "key": key})


class _Meter:
    """Rates from the first row of a key to its last: neither the start of the engines nor the end of others is part of them."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._since: tuple[float, dict[str, float]] | None = None
        self._final: str | None = None
        self.rows_per_s = 0.0

    def describe(self, sums: Mapping[str, float]) -> str:
        if not sums.get("rows"):
            return "starting"
        if self._final is not None:
            return self._final
        now = time.monotonic()
        if self._since is None:
            self._since = (now, dict(sums))
            return "started"
        then, first = self._since
        elapsed_s = max(now - then, 1e-9)
        rates = {name: (amount - first.get(name, 0)) / elapsed_s for name, amount in sums.items()}
        self.rows_per_s = rates["rows"]
        words = [f"{rates['rows']:,.1f} rows/s"]
        if "tokens" in rates:
            words.append(f"{rates['tokens']:,.0f} tokens/s")
        if sums.get("errors"):
            words.append(f"{sums['errors']:,.0f} errors")
        text = ", ".join(words)
        if sums["rows"] >= self._num_rows:
            self._final = text
        return text
