"""What the ids of two datasets say about each other: that none comes twice, and which are missing.

Runs in the driver. A hash table holds the ids of one bucket at a time (see `joins.py`), so memory does not grow with the rows.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.errors import ArtifactError
from firewall_ray.store.joins import Spill, num_buckets, spill_folder

IDS = pa.schema([pa.field("query_id", pa.string(), nullable=False)])


def in_buckets(num_rows: int, *columns: Iterable[pa.Array]) -> Iterator[tuple[pa.ChunkedArray, ...]]:
    """Columns of query_ids, split by a hash of the id: equal ids of all columns come at the same time, in their order.

    num_rows: about how many ids a column has. Raises StorageFailure when the disk is full.
    """
    count = num_buckets(num_rows)
    with spill_folder() as folder:
        spills = [
            # Ids of any text type: large strings and dictionaries, as others write them, become the same strings.
            Spill((pa.record_batch([ids.cast(pa.string())], IDS) for ids in column), IDS, count, folder / f"{number}")
            for number, column in enumerate(columns)
        ]
        for bucket in range(count):
            yield tuple(spill.bucket(bucket)["query_id"] for spill in spills)


def check_unique(query_ids: pa.ChunkedArray | pa.Array, where: str, advice: str = "One row a query.") -> None:
    """Raises ArtifactError naming a query_id that comes twice. In memory: for a bucket, or for what is there anyway."""
    if pc.count_distinct(query_ids).as_py() == len(query_ids):
        return
    # Of structs: `values` an id, `counts` int64.
    counted = query_ids.value_counts()
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    raise ArtifactError(f"{where}: query_id {twice[0].as_py()!r} comes more than once ({len(twice):,} such). {advice}")


def without(query_ids: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    """Those that are not among the others. In memory, as `check_unique`."""
    return query_ids.filter(pc.invert(pc.is_in(query_ids, others.combine_chunks())))
