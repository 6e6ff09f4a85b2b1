"""Progress of long stages: actors count what is done and say what they are doing, the driver shows it.

`ProgressCounter` runs as an actor of no CPU; workers tell it about once a second. `watch` shows its numbers on stderr, as one
live display on a terminal and as a line where something is new elsewhere (CI, `ray job logs`). Workers' own output stays in Ray's
logs.
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

from firewall_ray.cluster.display import Bars, Display, Lines, console
from firewall_ray.cluster.meter import ActorState, Meter

logger = logging.getLogger(__name__)

POLL_S = 1.0

Sums = dict[str, dict[str, float]]
States = dict[str, dict[str, ActorState]]


class ProgressCounter:
    """Sums of named amounts by key, for example ``{"weak": {"rows": 640, "tokens": 81_920, "errors": 0}}``."""

    def __init__(self) -> None:
        self._sums: Sums = defaultdict(lambda: defaultdict(float))
        # By key and actor: what it does, since when, when it last told, what it has in hand. Times of this process' monotonic
        # clock.
        self._states: dict[str, dict[str, tuple[str, float, float, Mapping[str, int]]]] = defaultdict(dict)
        self._lines: list[tuple[int, str]] = []

    def add(self, key: str, amounts: Mapping[str, float]) -> None:
        """Known names: `rows`, `errors`, `tokens`, `requests`, and `work`: rows too, with fractions for those partly done."""
        for name, amount in amounts.items():
            self._sums[key][name] += amount

    def state(self, key: str, actor: str, text: str, levels: Mapping[str, int] | None = None) -> None:
        """What an actor of `key` is doing from now on, "loading the model" for example; nothing, "", once it is gone.

        levels: of what it has in hand, for example {"running": 256, "waiting": 40}; shown as their sums over actors.
        """
        now = time.monotonic()
        if not text:
            self._states[key].pop(actor, None)
            return
        before = self._states[key].get(actor)
        since = before[1] if before is not None and before[0] == text else now
        self._states[key][actor] = (text, since, now, levels or {})

    def say(self, line: str, level: int = logging.INFO) -> None:
        """A line for the driver's log, such as an epoch's losses."""
        self._lines.append((level, line))

    def read(self) -> tuple[Sums, States, list[tuple[int, str]]]:
        """All sums, the actors' states, and the lines said since the last call."""
        now = time.monotonic()
        lines, self._lines = self._lines, []
        states = {
            # Ages, not times: a monotonic clock says nothing to another process.
            key: {actor: ActorState(text, now - since, now - told, levels) for actor, (text, since, told, levels) in actors.items()}
            for key, actors in self._states.items()
        }
        return {key: dict(sums) for key, sums in self._sums.items()}, states, lines


class DriverHandler(logging.Handler):
    """Sends a worker's log lines to the driver's log, through the counter that `watch` yields."""

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        self._counter.say.remote(self.format(record), record.levelno)


@contextmanager
def watch(stage: str, totals: Mapping[str, int], done: Mapping[str, int] | None = None) -> Iterator[Any]:
    """Yields the counter's actor handle; while the body runs, shows `rows` of each key against its total.

    `totals` and `done`: rows of each key in all, and those that an earlier run had done already.
    """
    # On the driver's node, not on one that may go while the stage goes on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    counter = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressCounter).remote()
    finished = threading.Event()
    meters = {key: Meter(total, (done or {}).get(key, 0)) for key, total in totals.items()}
    thread = threading.Thread(target=_show, args=(stage, counter, meters, finished), daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        finished.set()
        thread.join(timeout=10)  # the last reading may take its five seconds
        ray.kill(counter)


def _show(stage: str, counter: Any, meters: dict[str, Meter], finished: threading.Event) -> None:
    display: Display = Bars(stage, console) if console.is_terminal else Lines(stage)
    rows_left = Gauge("firewall_stage_rows_left", "Rows that a running stage has still to do.", tag_keys=("stage", "key"))
    last = False
    try:
        while not last:
            last = finished.wait(POLL_S)
            reading = _read(counter)
            if reading is not None:
                sums, states = reading
                for key, meter in meters.items():
                    meter.update(time.monotonic(), sums.get(key, {}), states.get(key, {}))
            for key, meter in meters.items():
                if meter.total is not None:
                    # Dashboards read an ETA from it, an alert looks for what stalls. It ends with the driver, as its job does.
                    rows_left.set(meter.total - meter.rows, {"stage": stage, "key": key})
            display.show(meters, last=last)
    finally:
        display.close()


def _read(counter: Any) -> tuple[Sums, States] | None:
    """What the counter holds; the lines it was told go to the log. None where it does not answer."""
    try:
        sums, states, lines = ray.get(counter.read.remote(), timeout=5)
    except ray.exceptions.RayError:
        return None  # progress is for looking at; a missed reading must not disturb the stage
    for level, line in lines:
        logger.log(level, "%s", line)
    return sums, states
