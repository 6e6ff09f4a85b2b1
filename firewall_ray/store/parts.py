"""Rows that arrive a few at a time -> a dataset of few files, whatever kills the writer.

Runs in the driver. While a dataset is made, its finished rows lie in `_parts/`, which readers pass over. They are the checkpoint
as well: a row that lies there is done. At the end `compact` moves them into files of ROWS_PER_FILE rows beside it.

A file a batch would be durable too, and at 64 rows a batch 15,625 files a million queries, each of which every later reader
opens. So rows wait in memory until they are FLUSH_ROWS, FLUSH_BYTES, or as old as a tenth of the time that the writer has had,
between MIN_AGE_S and MAX_AGE_S: a kill loses at most that much, and the first five minutes of a run make some forty files.

Compaction leaves a plan first, `_compaction.json`, because no object store renames and a row must never be seen twice:

    {"state": "writing", "generation": g}            files named after g are not whole: delete them, begin again
    {"state": "written", "replaced": [files]}        those of g are; delete the files that they replace, and the parts

With no plan there, files and parts hold each row once; only a row that was not final may have been made again since (`retry`), and
then the one in the parts counts.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from firewall_ray.errors import ArtifactError
from firewall_ray.store.dataset import Dataset, storage_errors
from firewall_ray.store.joins import LocalRows, Spill, num_buckets, spill_folder
from firewall_ray.store.query_ids import check_unique, in_buckets, without

PARTS = "_parts"
PLAN = "_compaction.json"

FLUSH_ROWS = 8_192
FLUSH_BYTES = 64 * 2**20  # what a part takes of the driver's memory: rows of samples hold all n texts
MIN_AGE_S, MAX_AGE_S = 1.0, 30.0
AGE_SHARE = 0.1  # of the time since the first row: a run that is killed after ten seconds has lost one of them

# Sixteen row groups of FLUSH_ROWS: a million queries are eight files.
ROWS_PER_FILE = 131_072
BYTES_PER_FILE = 256 * 2**20
COPY_ROWS = 1_024  # rows read at once while compacting; with 32 long texts a row is some 30 kB

# A finished dataset -> the ids of the rows that a retry leaves as they are.
FinalIds = Callable[[Dataset], Iterator[pa.Array]]

logger = logging.getLogger("firewall_ray")


def parts_of(dataset: Dataset) -> Dataset:
    """The parts of a dataset that is being made, as a dataset."""
    return replace(dataset, path=f"{dataset.path}/{PARTS}", _known={})


class PartsWriter:
    """Takes finished rows and writes them as parts. Of any threads; each call holds the lock while it writes."""

    def __init__(self, dataset: Dataset) -> None:
        self._parts = parts_of(dataset)
        self._lock = threading.Lock()
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._bytes_waiting = 0
        self._oldest = 0.0  # when the first of the waiting rows came
        self._began = 0.0  # when the first of all rows came: minutes in which an engine loads are no work that a kill would lose
        self._closed = False
        self.num_rows = 0  # taken so far

    def add(self, rows: pa.Table) -> None:
        """rows: in the dataset's schema. Raises StorageFailure, and RuntimeError after `abandon`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the writer was closed")
            if not self._waiting:
                self._oldest = time.monotonic()
            if not self.num_rows:
                self._began = time.monotonic()
            self._waiting.append(rows)
            self._num_waiting += len(rows)
            self._bytes_waiting += rows.nbytes
            self.num_rows += len(rows)
            self._flush_if_due()

    def tick(self) -> None:
        """Writes what has waited long enough: to be called every second or so, since the next rows may be minutes away."""
        with self._lock:
            self._flush_if_due()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def abandon(self) -> None:
        """Nothing is written any more, not even what waits: another job may have begun to write here."""
        with self._lock:
            self._closed = True
            self._waiting = []

    def _flush_if_due(self) -> None:
        now = time.monotonic()
        too_old = now - self._oldest > min(MAX_AGE_S, max(MIN_AGE_S, AGE_SHARE * (now - self._began)))
        if self._waiting and (self._num_waiting >= FLUSH_ROWS or self._bytes_waiting >= FLUSH_BYTES or too_old):
            self._flush()

    def _flush(self) -> None:
        if self._closed or not self._waiting:
            return
        # A name that no other run can have: parts of a killed run lie beside these.
        self._parts.append(pa.concat_tables(self._waiting).combine_chunks(), f"part-{uuid.uuid4().hex}.parquet")
        self._waiting, self._num_waiting, self._bytes_waiting = [], 0, 0


# What is done -------------------------------------------------------------------------------------------------------


def recover(dataset: Dataset) -> None:
    """Ends or undoes a compaction that a kill interrupted. To be called before anything reads or adds to an unfinished dataset."""
    if not dataset.exists(PLAN):
        return
    plan = dataset.read_json(PLAN)
    if plan["state"] == "writing":
        with storage_errors(f"write {dataset.path}"):
            # The parts are still whole: compacting begins again from them.
            _delete_files(dataset, [path for path in dataset.files() if _generation(path) == plan["generation"]])
            dataset.filesystem.delete_file(f"{dataset.path}/{PLAN}")
    else:
        _clear(dataset, plan["replaced"])


def ids_without_error(dataset: Dataset) -> Iterator[pa.Array]:
    """The ids of its rows that no error stands for."""
    for batch in dataset.iter_batches(["query_id", "error"]):
        yield batch["query_id"].filter(batch["error"].is_null())


def missing_ids(
    dataset: Dataset, num_rows: int, wanted: Iterable[pa.Array], *, retry: bool = False, final: FinalIds = ids_without_error
) -> Iterator[pa.ChunkedArray]:
    """Those of the `wanted` ids that have no row yet, a bucket of ids (see `joins.py`) at a time.

    retry: a row that is not `final` counts as none, unless it lies in the parts, where this run has just made it.
    """
    done = (final(dataset) if retry else _ids(dataset), _ids(parts_of(dataset)))
    for wanted_ids, finished, in_parts in in_buckets(num_rows, wanted, *done):
        yield without(without(wanted_ids, finished), in_parts)


def missing_rows(
    dataset: Dataset,
    rows: LocalRows,
    columns: list[str] | None = None,
    *,
    retry: bool = False,
    final: FinalIds = ids_without_error,
) -> Iterator[pa.RecordBatch]:
    """Those of `rows` that `missing_ids` finds, with `columns`. In their order where nothing is done yet, else by buckets."""
    if not dataset.files() and not parts_of(dataset).files():
        yield from rows.batches(columns)
        return
    with spill_folder() as folder:
        # As many buckets as `missing_ids` makes of as many rows, and by the same hash: number i of both hold the same ids.
        spill = Spill(rows.batches(columns), rows.schema_of(columns), num_buckets(len(rows)), folder / "rows")
        for number, missing in enumerate(missing_ids(dataset, len(rows), rows.column("query_id"), retry=retry, final=final)):
            bucket = spill.bucket(number)
            yield from bucket.filter(pc.is_in(bucket["query_id"], missing.combine_chunks())).to_batches()


def check_whole(dataset: Dataset, num_rows: int, wanted: Iterable[pa.Array]) -> None:
    """No row twice, none lost: the promise is checked, not assumed. Rows of other queries may be there.

    Raises ArtifactError naming a query.
    """
    where = f"{dataset.kind}: {dataset.path}"
    for wanted_ids, there in in_buckets(num_rows, wanted, _ids(dataset)):
        check_unique(there, where, "Make it again with --force.")
        if len(lost := without(wanted_ids, there)):
            raise ArtifactError(f"{where} lacks queries, {lost[0].as_py()!r} among them. Run the same command again.")


def _ids(dataset: Dataset) -> Iterator[pa.Array]:
    return (batch["query_id"] for batch in dataset.iter_batches(["query_id"]))


# Compaction ---------------------------------------------------------------------------------------------------------


def compact(dataset: Dataset) -> None:
    """Moves the parts into files of the dataset. Between `begin` and `finish`, after `recover`; what kills it, `recover` mends.

    A row of the files whose id lies in the parts too was made again, and is left out of the new files; then all are written anew.
    Memory: COPY_ROWS rows, a row group, and the ids that were made again.
    """
    parts = parts_of(dataset)
    if not parts.files():
        return
    remade = _remade(dataset, parts)
    replaced = dataset.files() if len(remade) else []
    # Lists the files when the first batch is asked for, which is before a new file is there.
    kept = _without_ids(dataset, remade) if replaced else iter(())
    generation = uuid.uuid4().hex[:8]
    dataset.write_json(PLAN, {"state": "writing", "generation": generation})
    _write_files(dataset, generation, _chained(kept, parts.iter_batches(batch_rows=COPY_ROWS)))
    # Below the dataset's path: ROOT may be moved, or be reached by another address, before the next run ends this.
    plan = {"state": "written", "replaced": [path.removeprefix(f"{dataset.path}/") for path in replaced]}
    dataset.write_json(PLAN, plan)
    _clear(dataset, plan["replaced"])


def _remade(dataset: Dataset, parts: Dataset) -> pa.Array:
    """The ids that the files hold and the parts anew, sorted."""
    if not dataset.files():
        return pa.array([], pa.string())
    num_rows = dataset.num_rows() + parts.num_rows()
    both = [new.filter(pc.is_in(new, old.combine_chunks())) for old, new in in_buckets(num_rows, _ids(dataset), _ids(parts))]
    ids = pa.chunked_array([chunk for ids in both for chunk in ids.chunks], pa.string()).combine_chunks()
    return ids.take(pc.sort_indices(ids))


def _without_ids(dataset: Dataset, ids: pa.Array) -> Iterator[pa.RecordBatch]:
    """ids: sorted, at least one."""
    last = pa.scalar(len(ids) - 1, pa.uint64())
    for batch in dataset.iter_batches(batch_rows=COPY_ROWS):
        # By binary search: a hash table of all ids for every batch would be quadratic, and after a longer limit they are many.
        places = pc.min_element_wise(pc.search_sorted(ids, batch["query_id"]), last)
        yield batch.filter(pc.not_equal(ids.take(places), batch["query_id"]))


def _chained(*streams: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for stream in streams:
        yield from stream


def _write_files(dataset: Dataset, generation: str, batches: Iterator[pa.RecordBatch]) -> None:
    with storage_errors(f"write {dataset.path}"), ExitStack() as stack:
        number, rows_in_file, writer, stream = 0, 0, None, None
        # Groups, so that only one is in memory; `stack.close` ends the file's writer and then its stream.
        for group in _row_groups(batches):
            # Bytes as they lie in the file, compressed. Asked before a group is written, so a file can be larger by one.
            if stream is not None and (rows_in_file + len(group) > ROWS_PER_FILE or stream.tell() > BYTES_PER_FILE):
                stack.close()
                stream = None
            if stream is None:
                path = f"{dataset.path}/part-{generation}-{number:05}.parquet"
                stream = stack.enter_context(dataset.filesystem.open_output_stream(path))
                writer = stack.enter_context(pq.ParquetWriter(stream, dataset.schema, compression="zstd"))
                number, rows_in_file = number + 1, 0
            assert writer is not None
            writer.write_table(group)
            rows_in_file += len(group)


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together: what is read row group by row group should not be read a few rows at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= FLUSH_ROWS or sum(b.nbytes for b in waiting) >= FLUSH_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _clear(dataset: Dataset, replaced: Sequence[str]) -> None:
    """The plan goes last: until then a kill brings us here again."""
    with storage_errors(f"write {dataset.path}"):
        _delete_files(dataset, [f"{dataset.path}/{name}" for name in replaced])
        folder = f"{dataset.path}/{PARTS}"
        if dataset.filesystem.get_file_info(folder).type == pafs.FileType.Directory:
            dataset.filesystem.delete_dir(folder)
        dataset.filesystem.delete_file(f"{dataset.path}/{PLAN}")


def _delete_files(dataset: Dataset, paths: list[str]) -> None:
    # Some may be gone: a kill in the middle of deleting brings us here again.
    for path in paths:
        if dataset.filesystem.get_file_info(path).type == pafs.FileType.File:
            dataset.filesystem.delete_file(path)


def _generation(path: str) -> str:
    """Of a file that `compact` wrote; of another's name something that is none."""
    return path.rpartition("/")[2].removeprefix("part-").partition("-")[0]
