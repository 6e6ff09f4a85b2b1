"""Which rows of the samples are graded together: blocks of about equal work, so that every CPU has some until the end.

`look_over` and `plan_blocks` run in the driver, `read_block` in workers. A verdict is a few string operations or a program in a
sandbox, a factor of a thousand, so blocks of equally many rows would be one task for all of HumanEval, or a million for TriviaQA.

The driver knows each row's task from the pass that checks ids, and how many texts it has from the files' footers; the texts
themselves are read by workers alone. Which of them are the same, and graded once, is not known: the costs are upper bounds.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from firewall_ray.errors import ArtifactError
from firewall_ray.store.casting import cast_batch
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import READ_ROWS, LocalRows, Spill, num_buckets, spill_folder
from firewall_ray.store.query_ids import check_unique, without
from firewall_ray.tasks import Task

IDS_AND_ROWS = pa.schema([pa.field("query_id", pa.string(), nullable=False), pa.field("row", pa.int64())])
# A block: runs of rows, [first, end) of a file, counted from 0.
BLOCK = pa.schema([pa.field("file", pa.string()), pa.field("first", pa.int64()), pa.field("end", pa.int64())])

ROW_S = 1e-4  # of a row whatever its task: it is decoded, its reference found and parsed, its verdicts encoded
BLOCKS_PER_CPU = 8  # what the last block adds to the end is an eighth of a CPU's share, at most
MIN_BLOCK_S = 0.5  # a task that starts and opens a file of an object store takes a tenth of a second or two
MAX_BLOCK_S = 30.0  # what a kill loses on each CPU


@dataclass(frozen=True)
class SampleRows:
    """The samples' rows that are to have a grade: `ids` (IDS_AND_ROWS), by buckets.

    costs: of all rows, float32, (num_rows,), see `row_costs`. num_without: queries without samples.
    """

    ids: LocalRows
    costs: NDArray[np.float32]
    num_without: int


def look_over(samples: Dataset, queries: LocalRows, tasks: Mapping[str, Task], *, only_known: bool) -> SampleRows:
    """In one pass over ids and tasks. only_known: without the rows of queries that are not there.

    Raises ArtifactError for samples without rows, or with two of a query.
    """
    where = f"samples: {samples.path}"
    num_samples = samples.num_rows()
    if not num_samples:
        raise ArtifactError(f"{where} has no rows. Run: {samples.made_by} --config FILE --force")
    verdict_s = np.empty(num_samples, dtype=np.float32)
    num_without = 0

    def place_rows() -> Iterator[pa.RecordBatch]:
        row = 0
        for batch in samples.iter_batches(["query_id", "task"], READ_ROWS):
            # A handful of tasks for millions of rows: each is looked up once a batch, not once a row.
            encoded = batch["task"].dictionary_encode()
            seconds = [tasks[name].verdict_s if name in tasks else 0.0 for name in encoded.dictionary.to_pylist()]
            numbers = np.arange(row, row := row + batch.num_rows)
            verdict_s[numbers] = np.array(seconds, dtype=np.float32)[encoded.indices]
            yield pa.record_batch([batch["query_id"], numbers], IDS_AND_ROWS)

    def checked(there: Spill, wanted: Spill, count: int) -> Iterator[pa.RecordBatch]:
        nonlocal num_without
        for bucket in range(count):
            rows, known = there.bucket(bucket), wanted.bucket(bucket)["query_id"]
            check_unique(rows["query_id"], where)
            num_without += len(without(known, rows["query_id"]))
            yield from (rows.filter(pc.is_in(rows["query_id"], known.combine_chunks())) if only_known else rows).to_batches()

    count = num_buckets(max(num_samples, len(queries)))
    with spill_folder() as folder:
        there = Spill(place_rows(), IDS_AND_ROWS, count, folder / "samples")
        wanted = Spill(queries.batches(["query_id"]), queries.schema_of(["query_id"]), count, folder / "queries")
        ids = LocalRows(checked(there, wanted, count), IDS_AND_ROWS)
    return SampleRows(ids, row_costs(samples, verdict_s), num_without)


def row_costs(samples: Dataset, verdict_s: NDArray[np.float32]) -> NDArray[np.float32]:
    """Seconds that grading a row takes: float32, (num_rows,), each above 0. verdict_s: the same shape, of one verdict."""
    costs = np.empty_like(verdict_s)
    first = 0
    for footer in samples.footers().values():
        for group in map(footer.row_group, range(footer.num_row_groups)):
            end = first + group.num_rows
            columns = map(group.column, range(group.num_columns))
            # Parquet counts a null list as one value, which makes the bound a little higher.
            num_texts = sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == "texts")
            # The mean of the row group, and the greedy text. Four bytes a row here, so that 10^7 rows take 40 MB of the driver.
            costs[first:end] = ROW_S + verdict_s[first:end] * (num_texts / max(group.num_rows, 1) + 1)
            first = end
    return costs


def plan_blocks(samples: Dataset, costs: NDArray[np.float32], num_cpus: float) -> list[pa.Table]:
    """Blocks (tables of BLOCK) that hold every row with a cost above 0 once; the dearest come first.

    costs: (num_rows,), in the order of the dataset's files; 0 for rows that are not to be graded.
    """
    footers = samples.footers()
    rows_of_groups = [footer.row_group(i).num_rows for footer in footers.values() for i in range(footer.num_row_groups)]
    groups = np.concatenate(([0], np.cumsum(rows_of_groups, dtype=np.int64)))
    share = float(costs.sum(dtype=np.float64)) / (max(num_cpus, 1) * BLOCKS_PER_CPU)
    cuts = cut_by_cost(costs, groups, min(max(share, MIN_BLOCK_S), MAX_BLOCK_S))
    files = np.concatenate(([0], np.cumsum([footer.num_rows for footer in footers.values()], dtype=np.int64)))
    blocks = [(costs[first:end].sum(), _block(costs, list(footers), files, first, end)) for first, end in itertools.pairwise(cuts)]
    # The dearest first: begun last it would run alone when all others are done.
    return [block for _, block in sorted(blocks, key=lambda block: -block[0]) if len(block)]


def cut_by_cost(costs: NDArray[np.float32], groups: NDArray[np.int64], max_s: float) -> NDArray[np.int64]:
    """Where blocks begin and end: ascending row numbers, 0 first and num_rows last.

    A block costs at most `max_s` and one row more. Between row groups where that is enough, since who wants some rows of one
    decodes all before them; inside only of those that cost more, which are cut into equal parts. groups: where the row groups begin
    and end, (num_groups + 1,).

    >>> cut_by_cost(np.float32([1, 1, 1, 1, 6, 0, 6]), np.array([0, 2, 4, 7]), max_s=4)
    array([0, 4, 5, 7])
    """
    cuts, open_s = [0], 0.0
    for first, end in itertools.pairwise(groups.tolist()):
        # float64: a running sum in float32 stops growing by ROW_S at 2,048 s.
        so_far = np.cumsum(costs[first:end], dtype=np.float64)
        group_s = float(so_far[-1]) if end > first else 0.0
        if open_s + group_s > max_s:
            cuts.append(first)
            open_s = 0.0
        if group_s > max_s:
            parts = int(np.ceil(group_s / max_s))
            cuts += (first + 1 + np.searchsorted(so_far, group_s * np.arange(1, parts) / parts)).tolist()
            cuts.append(end)
        else:
            open_s += group_s
    return np.unique(np.array([*cuts, len(costs)], dtype=np.int64))


def _block(costs: NDArray[np.float32], names: list[str], files: NDArray[np.int64], first: int, end: int) -> pa.Table:
    """The rows of [first, end) with a cost, as runs. files: where the files begin and end, (num_files + 1,)."""
    runs: list[tuple[str, int, int]] = []
    for number in range(int(np.searchsorted(files, first, side="right")) - 1, int(np.searchsorted(files, end))):
        start, stop = max(first, files[number]), min(end, files[number + 1])
        # Where a run begins or ends, (2 * num_runs,); outside the block counts as without a cost, so they come in pairs.
        edges = np.flatnonzero(np.diff(costs[start:stop] > 0, prepend=False, append=False)) + start - files[number]
        runs += [(names[number], int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return pa.Table.from_pylist([dict(zip(BLOCK.names, run, strict=True)) for run in runs], schema=BLOCK)


def read_block(samples: Dataset, schema: pa.Schema, block: pa.Table, batch_rows: int) -> Iterator[pa.Table]:
    """The rows of a block in tables of `schema`, up to `batch_rows` each. Raises ArtifactError naming the file, or a null's row."""
    for path in block["file"].unique().to_pylist():
        where = f"{samples.kind}: {path}"
        runs = block.filter(pc.equal(block["file"], path))
        firsts, ends = runs["first"].to_numpy(), runs["end"].to_numpy()
        try:
            for row, batch in _batches_near(samples.open(path), schema.names, firsts, ends, batch_rows):
                rows = np.arange(row, row + batch.num_rows)
                # More runs have begun than ended: the row lies in one.
                wanted = np.searchsorted(firsts, rows, side="right") > np.searchsorted(ends, rows, side="right")
                if wanted.any():
                    yield pa.Table.from_batches([cast_batch(batch, schema, where, row).filter(pa.array(wanted))])
        except (pa.ArrowException, OSError) as e:
            raise ArtifactError(f"{where} cannot be read: {e}. Restore the file, or make it again.") from e


def _batches_near(
    file: pq.ParquetFile, columns: list[str], firsts: NDArray[np.int64], ends: NDArray[np.int64], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that hold rows of the runs, each with the number of its first row in the file."""
    row = 0
    for number in range(file.num_row_groups):
        num_rows = file.metadata.row_group(number).num_rows
        if np.searchsorted(ends, row, side="right") < np.searchsorted(firsts, row + num_rows):
            at = row
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[number], columns=columns):
                yield at, batch
                at += batch.num_rows
        row += num_rows
