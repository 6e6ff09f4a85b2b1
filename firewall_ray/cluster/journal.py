"""Which rows are with which actor, and who died over them: what tells a bad row from a bad node, and bad luck from a broken model.

`Journal` runs as an actor on the driver's node, which lives as long as the stage does. The actors of a pool tell it when they
start, take rows and hand them back (`cluster/workers.py`). It knows nothing of models or datasets.

* Rows that an actor held when its process died are suspects, and are tried one at a time from then on. A row that its actor dies
  of then has killed twice, once in company and once alone: it is set aside. A node that died says nothing about its rows.
* Starts without a row done between them are counted. More than `max_starts` of them mean that the next would not help either.
  However many there are over a run's whole life: a spot node that is reclaimed ten times a day costs ten starts, with progress
  between them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from firewall_ray.errors import EngineDied, FirewallRayError, UserError

KILLS = 2  # of one row, before it is set aside

Treatment = Literal["together", "alone", "aside"]


@dataclass
class _Held:
    """Rows that one actor process (`worker`) works on."""

    worker: str
    node: str
    query_ids: frozenset[str]


class Journal:
    """alive_nodes: the ids of the nodes that live now. max_starts: of a pool's actors, with no row done between them."""

    def __init__(self, max_starts: int, alive_nodes: Callable[[], Collection[str]]) -> None:
        self._max_starts = max_starts
        self._alive_nodes = alive_nodes
        self._held: dict[int, _Held] = {}
        self._next_number = 0
        self._kills: Counter[str] = Counter()  # by query_id; 0 again once the row was done alone
        self._starts = 0
        self._has_started = False
        self._reason = ""  # what the last actor said that could not start
        self._verdict: FirewallRayError | None = None  # why the stage cannot go on

    def started(self) -> bool:
        """A process begins, before it loads anything: what dies while loading is a start without a row as well.

        Returns whether it may go on; where not, `why_ended` says why.
        """
        self._has_started = True
        self._starts += 1
        if self._verdict is None and self._starts > self._max_starts:
            reason = f" The last one said: {self._reason}" if self._reason else ""
            self._verdict = EngineDied(f"its actors started {self._max_starts:,} times without getting a single row done.{reason}")
        return self._verdict is None

    def could_not_start(self, reason: str, fatal: UserError | None = None) -> None:
        """An actor's constructor raised; `fatal` where it would raise the same again."""
        self._reason = reason
        self._verdict = self._verdict or fatal

    def has_started(self) -> bool:
        """Whether the cluster has found room for an actor by now."""
        return self._has_started

    def why_ended(self) -> FirewallRayError | None:
        return self._verdict

    def treatment(self, worker: str, query_ids: Sequence[str]) -> list[Treatment]:
        """How each of these rows is to be worked on by this process, which is about to take them."""
        self._bury(worker, query_ids)
        kinds: dict[int, Treatment] = {0: "together", 1: "alone"}
        return [kinds.get(self._kills[query_id], "aside") for query_id in query_ids]

    def take(self, worker: str, node: str, query_ids: Sequence[str]) -> int:
        """From now until `done` is told the number that this returns, `worker` works on these rows."""
        # Numbers, not actors: an actor with several batches in flight holds several sets of rows.
        self._next_number += 1
        self._held[self._next_number] = _Held(worker, node, frozenset(query_ids))
        return self._next_number

    def done(self, number: int) -> None:
        held = self._held.pop(number, None)
        if held is None:
            return
        self._starts = 0
        for query_id in held.query_ids:
            # A Counter's `del` takes what is not there.
            del self._kills[query_id]

    def _bury(self, worker: str, query_ids: Sequence[str]) -> None:
        """Rows that come a second time were with a process that is gone: Ray hands them on for no other reason."""
        ids = frozenset(query_ids)
        gone = [number for number, held in self._held.items() if held.worker != worker and held.query_ids & ids]
        if not gone:
            return
        alive = self._alive_nodes()
        for number in gone:
            held = self._held.pop(number)
            if held.node in alive:
                self._kills.update(held.query_ids)
                # Each row is set aside once, so this cannot keep a pool alive for ever.
                if any(self._kills[query_id] == KILLS for query_id in held.query_ids):
                    self._starts = 0  # a row set aside is a row done with
