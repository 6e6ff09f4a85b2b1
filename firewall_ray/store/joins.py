"""Rows on the driver's local disk, so that its memory does not grow with them.

`LocalRows` are read batch by batch. `Spill` splits rows by a hash of query_id, so that datasets join one bucket at a time: equal
ids land in the bucket of the same number whatever order or file they come in, so a join needs one bucket of each dataset in
memory, never a whole one.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firewall_ray.errors import StorageFailure
from firewall_ray.store.dataset import Dataset

BUCKET_ROWS = 65_536  # About 30 MB with prompts of 300 characters.
MAX_BUCKETS = 256  # Files open at the same time. From 256 * 65,536 = 16.8 million rows on, buckets grow instead.
READ_ROWS = 16_384


def num_buckets(num_rows: int) -> int:
    """How many buckets hold about BUCKET_ROWS rows each.

    >>> num_buckets(0), num_buckets(65_536), num_buckets(65_537), num_buckets(10**9)
    (1, 1, 2, 256)
    """
    return min(max(-(-num_rows // BUCKET_ROWS), 1), MAX_BUCKETS)


def buckets_of(query_ids: pa.Array | pa.ChunkedArray, count: int) -> NDArray[np.uint32]:
    """The number of each id's bucket, uint32 in [0, count), (num_ids,); the same in every process."""
    # crc32 takes bytes. Not Python's hash(), which each process salts anew.
    ids = query_ids.cast(pa.binary()).to_numpy(zero_copy_only=False)
    return np.fromiter(map(crc32, ids), dtype=np.uint32, count=len(ids)) % np.uint32(count)


@contextmanager
def spill_folder() -> Iterator[Path]:
    """A temporary folder under TMPDIR, deleted afterwards. Raises StorageFailure when it cannot be made."""
    with spill_errors():
        folder = tempfile.TemporaryDirectory(prefix="firewall-ray-")
    with folder as name:
        yield Path(name)


@contextmanager
def spill_errors() -> Iterator[None]:
    """Around what touches spilled files, and nothing else: an OSError there is one of this disk, which may be full."""
    try:
        yield
    except OSError as e:
        raise StorageFailure(
            f"Cannot keep temporary files in {tempfile.gettempdir()}: {e}. Set TMPDIR to a folder with more space."
        ) from e


@contextmanager
def _ipc_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A function that adds a batch to the file. What the body raises stays as it is."""
    with spill_errors():
        writer = pa.ipc.new_file(str(path), schema)

    def write(batch: pa.RecordBatch) -> None:
        with spill_errors():
            writer.write_batch(batch)

    try:
        yield write
    finally:
        with spill_errors():
            writer.close()


class LocalRows:
    """Batches of `schema` in a file that is gone with this object; whoever reads them has one in memory at a time."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        self.schema = schema
        self._num_rows = 0
        with spill_folder() as folder:
            path = folder / "rows.arrow"
            with _ipc_writer(path, schema) as write:
                for batch in batches:
                    write(batch)
                    self._num_rows += batch.num_rows
            with spill_errors():
                self._file = pa.OSFile(str(path))  # stays readable without a name

    def __len__(self) -> int:
        return self._num_rows

    def schema_of(self, columns: list[str] | None) -> pa.Schema:
        return self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """In order, with `columns` or all of them. Threads may read at the same time."""
        reader = pa.ipc.open_file(self._file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch if columns is None else batch.select(columns)

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column, batch by batch."""
        return (batch[name] for batch in self.batches([name]))

    def read(self) -> pa.Table:
        """All of them in memory."""
        return pa.Table.from_batches(self.batches(), self.schema)


class Spill:
    """Batches of `schema` in `count` bucket files under `folder`; rows keep their order within a bucket.

    bucket_of: the number of each row's bucket, integers in [0, count), (num_rows,); None: a hash of its query_id.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        count: int,
        folder: Path,
        bucket_of: Callable[[pa.RecordBatch], NDArray[np.integer]] | None = None,
    ) -> None:
        with spill_errors():
            folder.mkdir()
        self.paths = [folder / f"{bucket:03}.arrow" for bucket in range(count)]
        with ExitStack() as stack:
            writers = [stack.enter_context(_ipc_writer(path, schema)) for path in self.paths]
            for batch in batches:
                for bucket, rows in _partition(batch, count, bucket_of):
                    writers[bucket](rows)

    @classmethod
    def of(cls, dataset: Dataset, columns: list[str], count: int, folder: Path) -> "Spill":
        """These columns of a dataset."""
        schema = pa.schema([dataset.schema.field(name) for name in columns])
        return cls(dataset.iter_batches(columns, READ_ROWS), schema, count, folder)

    def bucket(self, number: int) -> pa.Table:
        """The rows of one bucket, memory-mapped."""
        with spill_errors():
            # Text columns stay on the disk until they are read: a hash table of ids touches no prompts.
            return pa.ipc.open_file(pa.memory_map(str(self.paths[number]))).read_all()


def _partition(
    batch: pa.RecordBatch, count: int, bucket_of: Callable[[pa.RecordBatch], NDArray[np.integer]] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    # Neither hash nor copy where one bucket holds all, as in every run of up to BUCKET_ROWS queries.
    if count == 1:
        yield 0, batch
        return
    buckets = bucket_of(batch) if bucket_of else buckets_of(batch.column("query_id"), count)
    # order: int64, (num_rows,). Stable, so that rows keep their order within a bucket.
    order = np.argsort(buckets, kind="stable")
    # int64, (count + 1,): bucket i has the sorted rows [bounds[i], bounds[i + 1]).
    bounds = np.searchsorted(buckets[order], np.arange(count + 1))
    batch = batch.take(pa.array(order))
    for bucket, (start, end) in enumerate(itertools.pairwise(bounds)):
        if end > start:
            yield bucket, batch.slice(start, end - start)
