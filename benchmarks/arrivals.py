"""When rows come back to a stage's driver from its actors, which is what a rate in the middle of a run is made of.

The files of a finished dataset tell nothing of it: they are written anew, larger, when all is done.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from firewall_ray.store.parts import PartsWriter


class Arrival(NamedTuple):
    at_s: float
    rows: pa.Table


@contextmanager
def arrivals() -> Iterator[list[Arrival]]:
    """What comes, in order, as long as the block lasts."""
    seen: list[Arrival] = []
    add = PartsWriter.add

    def noted(self: PartsWriter, rows: pa.Table) -> None:
        seen.append(Arrival(time.perf_counter(), rows))
        add(self, rows)

    PartsWriter.add = noted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        PartsWriter.add = add  # type: ignore[method-assign]


def middle(seen: list[Arrival], skip: float, end: float = 1.0) -> tuple[list[pa.Table], float]:
    """The tables that came between these shares of all arrivals, and the seconds that they took.

    >>> tables = [Arrival(at, pa.table({"a": [1]})) for at in (0.0, 1.0, 2.0, 3.0)]
    >>> len(middle(tables, 0.25)[0]), middle(tables, 0.25)[1]
    (2, 2.0)
    """
    first, last = int(len(seen) * skip), int(len(seen) * end) - 1
    return [arrival.rows for arrival in seen[first + 1 : last + 1]], seen[last].at_s - seen[first].at_s
