"""Rows that are not done yet -> a pool of actors -> rows of a dataset, checked whole. Sampling, scoring, embeddings, qualities.

Runs in the driver; the actors on a Ray Data actor pool. What it promises, whatever the actors hold:

* A stop stops: SIGTERM, Ctrl-C, a lost lease or the failure of one of several maps ends all of them within seconds.
* What dies is begun again: processes by Ray, as often as rows get done between two deaths (`cluster/journal.py`); a pipeline that
  fails as a whole, by `run` here, by the same measure. A row that its actor dies of twice becomes a row with `error`.
* What is done is kept: rows reach storage in parts (`store/parts.py`), which are the checkpoint too. Only rows without one are
  handed out, and with `retry_errors` those whose row has an error.
* The driver holds references and one part's rows, never all: ids are compared on its local disk, a bucket at a time.

Ray Data's own checkpoint is not used: it keeps a file of ids for every file of rows, which it writes one for each block, and blocks
of a batch are what a kill should lose at most. At 64 rows a batch that is 31,250 files a million queries.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs as pafs
from ray.exceptions import RayError, RayTaskError

from firewall_ray.cluster.pool import Pool, mapped
from firewall_ray.cluster.progress import watch
from firewall_ray.cluster.workers import ErrorRows
from firewall_ray.errors import EngineDied, FirewallRayError, SystemFailure
from firewall_ray.store.dataset import Dataset, storage_errors
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.parts import (
    FinalIds,
    PartsWriter,
    check_whole,
    compact,
    ids_without_error,
    missing_ids,
    missing_rows,
    recover,
)

WANTED = "_wanted"  # the rows of this run, as the pipeline's input
ROWS_PER_WANTED_FILE = 262_144
POLL_S = 0.2
STOPS_WITHIN_S = 10.0  # after that the driver goes on without a thread that hangs in Ray

logger = logging.getLogger("firewall_ray")


@dataclass
class ActorMap:
    """One pool's part of a stage: those `rows` that `output`, which was begun, lacks.

    rows: with a query_id, and `columns` (all, when None), which the actor reads. actor: a class constructed with `arguments` and
    `progress`, a counter; see `workers.py` for how it is called, `progress.py` for what it may tell. name: of the work, in
    messages. retry_errors: rows that are there and not `final`, without an error when nothing else is said, are made again too.
    error_rows: makes the rows with `error` of those that are set aside; None where the dataset has no such column.
    when_whole: called in the map's thread, to finish the dataset while other maps go on.
    """

    key: str
    output: Dataset
    rows: LocalRows
    actor: type
    arguments: Mapping[str, Any]
    pool: Pool
    name: str
    error_rows: ErrorRows | None = None
    retry_errors: bool = False
    final: FinalIds = ids_without_error
    columns: list[str] | None = None
    when_whole: Callable[[], None] | None = None
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    _keeps: bool = True  # what is done and not written yet, when stopped

    def num_missing(self) -> int:
        """How many rows are to be done. Before `begin`, which may delete what is there, it counts that."""
        recover(self.output)
        ids = self.rows.column("query_id")
        return sum(
            len(missing) for missing in missing_ids(self.output, len(self.rows), ids, retry=self.retry_errors, final=self.final)
        )

    def stop(self, *, keep: bool) -> None:
        """From another thread than `run`'s. keep: write what is done; not where another job may hold these folders by now."""
        self._keeps = keep
        self._stopped.set()

    def run(self, progress: Any) -> None:
        """Blocks until the output is whole, but for its manifest. Raises what the actors raised where it is one of this project's
        errors, EngineDied where they keep dying, ArtifactError where rows are lost or come twice.
        """
        recover(self.output)
        failures = 0  # pipelines that ended with nothing done
        while num_wanted := self._write_wanted():
            writer = PartsWriter(self.output)
            try:
                self._pass(self.pool.for_rows(num_wanted), writer, progress)
            except (RayError, EngineDied) as e:
                writer.flush()
                failures = 0 if writer.num_rows else failures + 1
                # A bug or a refusal would only come again; what died may live the next time.
                # A RayTaskError is what an actor's code raised; any other RayError is of processes, nodes or objects.
                cause = e.cause if isinstance(e, RayTaskError) else e
                if not isinstance(cause, RayError) or failures > self.pool.max_restarts:
                    raise self._explained(cause) from e
                logger.warning("%s: its pipeline failed and is begun again with what is left: %s", self.name, _first_line(e))
                continue
            except BaseException:
                if self._keeps:
                    writer.flush()
                # The attendant's thread may still hold the writer; from here on it writes nothing.
                writer.abandon()
                raise
            writer.flush()
            if writer.num_rows < num_wanted:  # of lost objects; the ids that are left are looked up again
                failures = 0 if writer.num_rows else failures + 1
                if failures > self.pool.max_restarts:
                    raise SystemFailure(f"{self.name}: {num_wanted:,} rows were handed out and none came back, {failures} times.")
        compact(self.output)
        check_whole(self.output, len(self.rows), self.rows.column("query_id"))
        _delete_folder(self.output, WANTED)
        if self.when_whole is not None:
            self.when_whole()

    def _pass(self, pool: Pool, writer: PartsWriter, progress: Any) -> None:
        """Each row of `_wanted` once through the pool."""
        files = f"{self.output.path}/{WANTED}"
        # partitioning=None: Ray Data makes a column of every folder above that is called like `lr=1`, and ROOT may lie in one.
        rows = ray.data.read_parquet(files, filesystem=self.output.filesystem, partitioning=None)
        arguments = {**self.arguments, "progress": progress}
        with closing(mapped(rows, self.actor, arguments, pool, self._stopped, writer, self.error_rows)) as tables:
            for table in tables:
                writer.add(table.cast(self.output.schema))

    def _write_wanted(self) -> int:
        """The rows to do as Parquet files, which nodes read as they get to them. Returns how many there are."""
        _delete_folder(self.output, WANTED)
        missing = missing_rows(self.output, self.rows, self.columns, retry=self.retry_errors, final=self.final)
        return write_rows(self.output, WANTED, missing, self.rows.schema_of(self.columns), self.pool.batch_rows)

    def _explained(self, cause: Exception) -> FirewallRayError:
        if isinstance(cause, EngineDied):
            return EngineDied(f"{self.name}: {_first_line(cause)} {KEPT}")
        if isinstance(cause, FirewallRayError):
            return cause
        if isinstance(cause, RayError):
            return EngineDied(f"{self.name}: its actors keep dying. {KEPT} Ray says: {cause}")
        return SystemFailure(f"{self.name}: an actor failed. {KEPT} {type(cause).__name__}: {cause}")


KEPT = "What is done is kept; run the same command again to go on."


def run_actor_maps(stage: str, maps: Sequence[ActorMap], done: Mapping[str, int] | None = None) -> None:
    """Runs them side by side and shows their progress. In the main thread.

    done: rows of each key that an earlier run had done. The first error ends all maps and is raised, as are SystemExit (SIGTERM)
    and KeyboardInterrupt.
    """
    totals = {each.key: len(each.rows) for each in maps}
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(each: ActorMap, progress: Any) -> None:
        try:
            each.run(progress)
            ended.put(None)
        except BaseException as e:
            ended.put(e)

    with watch(stage, totals, done) as progress:
        # Daemons: a thread that hangs in Ray must not keep the process alive after its stop.
        threads = [threading.Thread(target=run, args=(each, progress), name=f"{stage} {each.key}", daemon=True) for each in maps]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if (error := _next(ended)) is not None:
                    raise error
        except BaseException as e:
            for each in maps:
                each.stop(keep=not isinstance(e, SystemExit))  # which is how a lost lease comes (`store/leases.py`)
            deadline = time.monotonic() + STOPS_WITHIN_S
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
            raise


def _next(ended: "queue.SimpleQueue[BaseException | None]") -> BaseException | None:
    while True:
        try:
            return ended.get(timeout=POLL_S)  # a wait without end would not let Python's signal handlers run
        except queue.Empty:
            continue


# Rows that are handed out -------------------------------------------------------------------------------------------


def write_rows(dataset: Dataset, folder: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema, row_group_rows: int) -> int:
    """Parquet files under a side folder of the dataset, for Ray Data to read. Returns the number of rows."""
    num_rows = rows_in_file = number = 0
    with storage_errors(f"write {dataset.path}/{folder}"):
        dataset.filesystem.create_dir(f"{dataset.path}/{folder}", recursive=True)
        writer: pq.ParquetWriter | None = None
        try:
            for batch in batches:
                if writer is None or rows_in_file >= ROWS_PER_WANTED_FILE:
                    if writer is not None:
                        writer.close()
                    path = f"{dataset.path}/{folder}/part-{number:05}.parquet"
                    writer = pq.ParquetWriter(path, schema, filesystem=dataset.filesystem)
                    number, rows_in_file = number + 1, 0
                writer.write_batch(batch, row_group_size=max(row_group_rows, 1_024))
                rows_in_file += batch.num_rows
                num_rows += batch.num_rows
        finally:
            if writer is not None:
                writer.close()
    return num_rows


def _delete_folder(dataset: Dataset, name: str) -> None:
    path = f"{dataset.path}/{name}"
    with storage_errors(f"delete {path}"):
        if dataset.filesystem.get_file_info(path).type == pafs.FileType.Directory:
            dataset.filesystem.delete_dir(path)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
