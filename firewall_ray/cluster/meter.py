"""How far one key of a stage is, how fast, what its actors do, and when it ends: numbers in, words out. Runs in the driver."""

from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

WINDOW_S = 300.0  # of the rates: long enough to even batches out, short enough to see actors come and go
LEVELS_LAST_S = 30.0  # an actor that is silent for longer has died, or has nothing in it
USUAL = "sampling"  # what an actor does when all is well; no words are lost on it


class ActorState(NamedTuple):
    """What an actor says that it is doing. since_s, told_s: seconds since it began that, and since it last told anything."""

    text: str
    since_s: float
    told_s: float
    levels: Mapping[str, int]


class Point(NamedTuple):
    at: float
    work: float
    rows: float
    tokens: float


class Meter:
    """total: rows of the key in all, None where nobody knows; done: those that an earlier run had done.

    Rates begin with the first thing that is done and stand still after the last: neither the start of the engines nor the end of
    others is part of them.
    """

    def __init__(self, total: int | None, done: int = 0) -> None:
        self.total = total
        self._done = done
        self._points: deque[Point] = deque()
        self._first: Point | None = None
        self._is_whole = False
        self._actors: dict[str, ActorState] = {}
        self._num_answered: float | None = None  # requests, since the stage began; None: of what has none, or does not say
        self.num_errors = 0
        self.rows = done
        self.work: float = done

    def update(self, now: float, sums: Mapping[str, float], actors: Mapping[str, ActorState]) -> None:
        """now: on a clock that never goes back. sums: since the stage began, of `rows`, `work`, `tokens`, `errors`, `requests`.

        Rows of a batch that a dead actor had counted are counted again by the next one, so sums can exceed the total.
        """
        self._actors = dict(actors)
        self._num_answered = sums.get("requests")
        self.num_errors = int(sums.get("errors", 0))
        if self._is_whole:
            return
        limit = float("inf") if self.total is None else self.total
        self.rows = int(min(limit, self._done + sums.get("rows", 0)))
        self.work = min(limit, max(self.rows, self._done + sums.get("work", 0)))
        point = Point(now, self.work, self.rows, sums.get("tokens", 0))
        if self._first is None and not any(sums.values()):
            return
        self._first = self._first or point
        self._points.append(point)
        # One point from before the window stays, so that a rate is of the whole window.
        while len(self._points) > 2 and self._points[1].at <= now - WINDOW_S:
            self._points.popleft()
        self._is_whole = self.total is not None and self.rows >= self.total
        if self._is_whole:
            # A key that is whole shows its rates over all of its time.
            self._points = deque([self._first, point])

    @property
    def phases(self) -> Counter[str]:
        """How many actors are doing what; none of it once all rows are done."""
        return Counter() if self._is_whole else Counter(actor.text for actor in self._actors.values() if actor.text)

    @property
    def seen(self) -> tuple[object, ...]:
        """What has to differ for a line to be worth another one."""
        return self.rows, self.work, self._points[-1].tokens if self._points else 0, self.num_errors

    def left_s(self) -> float | None:
        """Seconds until all rows are done, None while there is no rate."""
        rate = self._rates()[0]
        if self.total is None or self._is_whole or not rate or self._is_early():
            return None
        return (self.total - self.work) / rate

    def _is_early(self) -> bool:
        """Whether fewer requests were answered than run at once: the first to end are the shortest, and few for the time."""
        running = sum(actor.levels.get("running", 0) for actor in self._actors.values())
        return self._num_answered is not None and self._num_answered < running

    def words(self) -> str:
        """For example: 12 of 170 rows (14% of the requests answered), about 7 minutes left for about 66 k tokens, 158 tokens/s,
        96 running, 40 waiting.
        """
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.rows:,}{of} rows"]
        if self.total and self.work - self.rows > 0.005 * self.total:
            parts[0] += f" ({self.work / self.total:.0%} of the requests answered)"
        if (left_s := self.left_s()) is not None:
            parts.append(f"{about(left_s)} left")
        _, rows_per_s, tokens_per_s = self._rates()
        if left_s and tokens_per_s:
            parts[-1] += f" for about {count_words(tokens_per_s * left_s)} tokens"
        if rows_per_s:
            parts.append(f"{rows_per_s:,.1f} rows/s" if rows_per_s >= 1 else f"{60 * rows_per_s:,.1f} rows/min")
        if tokens_per_s:
            parts.append(f"{tokens_per_s:,.0f} tokens/s")
        if self.num_errors:
            parts.append(f"{self.num_errors:,} errors")
        # Sums over the actors, by name: how many requests run, how many wait.
        levels: Counter[str] = Counter()
        for actor in self._actors.values():
            if actor.told_s <= LEVELS_LAST_S and not self._is_whole:
                levels.update(actor.levels)
        parts += [f"{number:,} {name}" for name, number in levels.items() if number]
        parts += [self._phase(text, number) for text, number in sorted(self.phases.items()) if text != USUAL]
        if len(parts) == 1 and self._first is None:
            parts.append("starting")
        return ", ".join(parts)

    def _phase(self, text: str, number: int) -> str:
        longest_s = max(actor.since_s for actor in self._actors.values() if actor.text == text)
        since = f" for {about(longest_s)[6:]}" if longest_s >= 60 else ""
        return f"{number:,} {'actor' if number == 1 else 'actors'}: {text}{since}"

    def _rates(self) -> tuple[float, float, float]:
        """Work, rows and tokens a second; 0 while there is nothing to measure between."""
        if len(self._points) < 2:
            return 0.0, 0.0, 0.0
        first, last = self._points[0], self._points[-1]
        elapsed_s = max(last.at - first.at, 1e-9)
        return (last.work - first.work) / elapsed_s, (last.rows - first.rows) / elapsed_s, (last.tokens - first.tokens) / elapsed_s


def about(seconds: float) -> str:
    """A duration as a person says it.

    >>> about(41), about(3_100), about(12_700)
    ('about 41 s', 'about 52 minutes', 'about 3.5 hours')
    """
    if seconds < 60:
        return f"about {seconds:.0f} s"
    if seconds < 5_400:
        minutes = round(seconds / 60)
        return f"about {minutes} minute{'' if minutes == 1 else 's'}"
    return f"about {seconds / 3_600:.1f} hours"


def count_words(number: float) -> str:
    """A large number as a person says it.

    >>> count_words(812_000), count_words(41_200), count_words(2.4e9), count_words(300)
    ('0.8 M', '41 k', '2.4 G', '300')
    """
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size / 10:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.0f} k" if number >= 1e3 else f"{number:,.0f}"
