"""The queries that grading tasks look up, in Ray's object store: put there by the driver, found by id in workers.

In buckets by a hash of query_id (`store/joins.py`), so that a task takes from the store what its own rows need.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from firewall_ray.store.joins import LocalRows, Spill, buckets_of, num_buckets, spill_folder

QUERY_COLUMNS = ["query_id", "task", "reference"]


def share(queries: LocalRows, columns: Sequence[str] = QUERY_COLUMNS, anchors: LocalRows | None = None) -> list[ray.ObjectRef]:
    """`columns` for all workers: a table a bucket (see `store/joins.py`), sorted by query_id, in Ray's object store.

    anchors: the answers of which each query gets its own as `anchor`, null where there is none; see `anchors_of`.
    """
    count = num_buckets(len(queries))
    schema = queries.schema_of(list(columns))
    with spill_folder() as folder:
        buckets = Spill(queries.batches(list(columns)), schema, count, folder / "queries")
        beside = Spill(anchors.batches(), anchors.schema, count, folder / "anchors") if anchors is not None else None

        def bucket(number: int) -> pa.Table:
            rows = buckets.bucket(number)
            return rows if beside is None else rows.join(beside.bucket(number), "query_id")

        return [ray.put(bucket(number).sort_by("query_id").combine_chunks()) for number in range(count)]


def shared_rows(shared: Sequence[ray.ObjectRef], query_ids: pa.ChunkedArray) -> pa.Table:
    """Those of the shared rows that have one of the ids, and perhaps a few more. Runs in a worker."""
    buckets = buckets_of(query_ids, len(shared))
    numbers = np.unique(buckets)
    tables = ray.get([shared[number] for number in numbers])
    # Each bucket is asked for its own ids alone: those of others would only find their neighbours in it.
    near = [rows_near(table, query_ids.filter(pa.array(buckets == n))) for n, table in zip(numbers, tables, strict=True)]
    return pa.concat_tables(near)


def rows_near(queries: pa.Table, query_ids: pa.ChunkedArray) -> pa.Table:
    """Those rows of `queries`, sorted by query_id, that have one of the ids, and perhaps a few more.

    By binary search: a hash table of all queries for each block of samples would make grading quadratic in their number.
    """
    if not len(queries):
        return queries
    # uint64, (num_ids,): where an id lies or would lie; len(queries) where it comes after all of them.
    places = pc.search_sorted(queries["query_id"], query_ids)
    return queries.take(pc.unique(pc.min_element_wise(places, pa.scalar(len(queries) - 1, pa.uint64()))))
