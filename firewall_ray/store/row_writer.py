"""A Parquet file written as its rows come, whose own errors are told from those of the code that makes the rows."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pyarrow as pa
import pyarrow.parquet as pq

from firewall_ray.errors import StorageFailure

Errors = Callable[[], AbstractContextManager[None]]  # around what touches the file: turns OSError into StorageFailure


class RowWriter:
    """stream: where the file goes, closed with the writer."""

    def __init__(self, stream: pa.NativeFile, schema: pa.Schema, errors: Errors) -> None:
        self._errors = errors
        self._stream = stream
        self._writer = pq.ParquetWriter(stream, schema, compression="zstd")

    def write_table(self, table: pa.Table) -> None:
        with self._errors():
            self._writer.write_table(table)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        with self._errors():
            self._writer.write_batch(batch)

    def close(self) -> None:
        with self._errors():
            try:
                self._writer.close()  # writes what is still in memory, and the footer
            finally:
                self._stream.close()


@contextmanager
def row_writer(opened: Callable[[], pa.NativeFile], schema: pa.Schema, errors: Errors) -> Iterator[RowWriter]:
    """Raises StorageFailure for the file, and what the body raises as it is: it may well have been reading another file."""
    with errors():
        writer = RowWriter(opened(), schema, errors)
    try:
        yield writer
    except BaseException:
        with suppress(StorageFailure):  # what went wrong first is what is said
            writer.close()
        raise
    writer.close()
