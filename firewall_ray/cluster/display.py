"""Progress where a person sees it: one live display on a terminal, in a log file a line where there is something new to say.

Runs in the driver, in the thread of `progress.watch`.
"""

import logging
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from firewall_ray.cluster.meter import Meter, about

FIRST_LINE_S = 15.0
PHASE_EVERY_S = 5.0  # sixty actors that load one after the other are not sixty lines
# A line every 20th of the time that the stage has taken: 20 lines in its first five minutes, a line every five minutes after hours.
SHARE_OF_ELAPSED = 0.05
LINE_EVERY_S = (15.0, 300.0)  # at least and at most
HEARTBEAT_S = 300.0

console = Console(stderr=True)  # of every job; stdout is for the closing JSON line
logger = logging.getLogger("firewall_ray.cluster.progress")


class Display(Protocol):
    def show(self, meters: Mapping[str, Meter], *, last: bool) -> None:
        """Called about once a second with each key's meter, and a last time at the end."""

    def close(self) -> None: ...


class Bars:
    """A bar a key, all in one live display above which log lines scroll."""

    def __init__(self, stage: str, console: Console) -> None:
        self._stage = stage
        self._bars: dict[str, TaskID] = {}
        words = TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), words, console=console)
        self._progress.start()

    def show(self, meters: Mapping[str, Meter], *, last: bool) -> None:
        for key, meter in meters.items():
            if key not in self._bars:
                self._bars[key] = self._progress.add_task(f"{self._stage} {key}", total=meter.total, words="")
            self._progress.update(self._bars[key], completed=meter.work, words=meter.words())

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """Lines in the log: what is new, at a pace that slows down as the stage goes on, and a sign of life where nothing is."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._began = time.monotonic()
        self._said: dict[str, _Said] = {}

    def show(self, meters: Mapping[str, Meter], *, last: bool) -> None:
        now = time.monotonic()
        least, most = LINE_EVERY_S
        pace_s = min(most, max(least, SHARE_OF_ELAPSED * (now - self._began)))
        for key, meter in meters.items():
            # As if a line had been said before the start, so that the first one is due FIRST_LINE_S after it, whatever the pace.
            said = self._said.setdefault(key, _Said(self._began - pace_s + FIRST_LINE_S, self._began))
            seen, phases = meter.seen, dict(meter.phases)
            if seen != said.last_seen or phases != said.last_phases:
                said.changed_at, said.last_seen, said.last_phases = now, seen, phases
            is_new = seen != said.seen or phases != said.phases
            since_line_s = now - said.at
            if (
                (last and is_new)
                or (is_new and since_line_s >= pace_s)
                or (phases != said.phases and since_line_s >= PHASE_EVERY_S)
            ):
                logger.info("%s %s: %s", self._stage, key, meter.words())
            elif since_line_s >= HEARTBEAT_S and not is_new:
                clock = time.strftime("%H:%M:%S", time.localtime(time.time() - (now - said.changed_at)))
                silence = about(now - said.changed_at)[6:]  # without its "about "
                logger.info("%s %s: nothing new for %s (since %s): %s", self._stage, key, silence, clock, meter.words())
            else:
                continue
            said.at, said.seen, said.phases = now, seen, phases

    def close(self) -> None:
        pass


class _Said:
    """What the last line of a key said, and when; and what was last seen, and since when it has been so."""

    def __init__(self, at: float, began: float) -> None:
        self.at = at
        self.seen: tuple[object, ...] | None = None
        self.phases: dict[str, int] = {}
        self.changed_at = began
        self.last_seen: tuple[object, ...] | None = None
        self.last_phases: dict[str, int] = {}
