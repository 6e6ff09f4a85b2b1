"""What stands around every actor of a pool: it keeps the journal, sets bad rows aside, and lets a pool that cannot start end.

Runs on the pool's actors. The actor inside is a class called with a table of rows, which returns a table with as many
(`__call__`), or yields tables (an async generator, as engines are that take several batches at once).
"""

import asyncio
import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from firewall_ray.errors import SystemFailure, UserError

logger = logging.getLogger(__name__)

ErrorRows = Callable[[pa.Table, str], pa.Table]  # rows that could not be worked on, and why -> rows of the output


def guarded(actor: type, journal: Any, arguments: Mapping[str, Any], error_rows: ErrorRows | None) -> tuple[type, tuple[Any, ...]]:
    """A class for `map_batches` that does what `actor` does, and its constructor's arguments.

    It has the actor's name, which is what Ray's dashboard and process list show.
    """
    base = _AsyncWorker if inspect.isasyncgenfunction(actor.__call__) else _SyncWorker
    worker = type(actor.__name__, (base,), {"__module__": actor.__module__})
    return worker, (actor, dict(arguments), journal, error_rows)


class _Worker:
    def __init__(self, actor: Callable[..., Any], arguments: Mapping[str, Any], journal: Any, error_rows: ErrorRows | None) -> None:
        self._journal = journal
        self._error_rows = error_rows
        self._id = uuid.uuid4().hex  # of this process; an actor that Ray starts again has another
        self._node = ray.get_runtime_context().get_node_id()
        if not ray.get(journal.started.remote()):
            raise SystemFailure("this pool's actors keep dying, so no other one is started")  # the driver asks the journal for more
        try:
            self._actor = actor(**arguments)
        except Exception as e:
            # Of what the caller has to change no other try is made; Ray Data would make some.
            ray.get(journal.could_not_start.remote(f"{type(e).__name__}: {e}"[:2_000], e if isinstance(e, UserError) else None))
            raise

    def _aside(self, rows: pa.Table) -> pa.Table:
        """Rows that killed their actor twice, as rows with `error`."""
        ids = rows["query_id"].to_pylist()
        why = f"set aside: this row's actor died of it twice, once with others and once alone (actor {type(self).__name__})"
        if self._error_rows is None:
            # A score cannot be missing and cannot be made up, so here the stage ends, naming the row.
            raise SystemFailure(f"query {ids[0]!r} was {why}. Leave it out of the input to go on.")
        logger.error("%s: %s", ", ".join(ids), why)
        return self._error_rows(rows, why)


class _SyncWorker(_Worker):
    def __call__(self, batch: pa.Table) -> pa.Table:
        ids = batch["query_id"].to_pylist()
        together, alone, aside = split(batch, ray.get(self._journal.treatment.remote(self._id, ids)))
        done = [self._aside(aside)] if len(aside) else []
        # Taken and done one after the other, each with a number of its own: a death is laid to those rows alone that were taken.
        for rows in [*([together] if len(together) else []), *(alone.slice(i, 1) for i in range(len(alone)))]:
            number = ray.get(self._journal.take.remote(self._id, self._node, rows["query_id"].to_pylist()))
            done.append(self._actor(rows))
            self._journal.done.remote(number)
        return pa.concat_tables(done)


class _AsyncWorker(_Worker):
    """Several calls at the same time; a row that is tried alone has the actor to itself."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._num_at_work = 0
        self._num_alone = 0  # rows that wait for the actor to themselves, or have it
        self._changed: asyncio.Condition | None = None  # made on first use: it belongs to the event loop of the calls

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        ids = batch["query_id"].to_pylist()
        together, alone, aside = split(batch, await self._journal.treatment.remote(self._id, ids))
        done = [self._aside(aside)] if len(aside) else []
        if len(together):
            async with self._at_work(alone=False):
                done += await self._worked_on(together)
        for i in range(len(alone)):
            async with self._at_work(alone=True):
                done += await self._worked_on(alone.slice(i, 1))
        # At the end and in one piece: Ray tells the pieces of a task that is tried again by their number, and a second try may
        # take the rows in another order.
        yield pa.concat_tables(done)

    @asynccontextmanager
    async def _at_work(self, *, alone: bool) -> AsyncIterator[None]:
        self._changed = self._changed or asyncio.Condition()
        async with self._changed:
            if alone:
                self._num_alone += 1  # from now on nobody else begins, or the engine would never be empty
                await self._changed.wait_for(lambda: not self._num_at_work)
            else:
                await self._changed.wait_for(lambda: not self._num_alone)
            self._num_at_work += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_at_work -= 1
                self._num_alone -= alone
                self._changed.notify_all()

    async def _worked_on(self, rows: pa.Table) -> list[pa.Table]:
        number = await self._journal.take.remote(self._id, self._node, rows["query_id"].to_pylist())
        tables = [table async for table in self._actor(rows)]
        self._journal.done.remote(number)
        return tables


def split(batch: pa.Table, treatments: Sequence[str]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows to work on together, alone, and not at all; each in the batch's order."""
    column = pa.array(treatments, pa.string())
    together, alone, aside = (batch.filter(pc.equal(column, kind)) for kind in ("together", "alone", "aside"))
    return together, alone, aside


def error_rows_of(make: Callable[[Mapping[str, Any], Exception], dict[str, Any]], schema: pa.Schema) -> ErrorRows:
    """An `ErrorRows` from a function of one row."""

    def rows(batch: pa.Table, why: str) -> pa.Table:
        return pa.Table.from_pylist([make(row, SystemFailure(why)) for row in batch.to_pylist()], schema=schema)

    return rows
