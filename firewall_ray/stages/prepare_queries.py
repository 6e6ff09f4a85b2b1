"""Tasks -> queries/: every benchmark of the run, as one Parquet dataset. And back: the checked queries that other stages read.

Runs in the driver. Rows are streamed; what stays in memory while preparing is eight bytes a query, to find duplicates. Queries
that are read lie in a temporary file.
"""

import itertools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError, TaskError
from firewall_ray.schemas import QUERIES, SPLITS
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.store.dataset import BATCH_ROWS, Dataset
from firewall_ray.store.joins import READ_ROWS, LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import check_unique, in_buckets
from firewall_ray.tasks import Query, Task, get_task, known_tasks

logger = logging.getLogger("firewall_ray")

Group = tuple[str, str]  # (task, split)


def run_prepare_queries(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> StageResult:
    """Write queries/ from the tasks that the config names.

    The tasks are read twice: first to check and count every row, so that nothing is written, or deleted, for bad input.
    `limit` keeps so many queries in all, see `quotas`. Raises TaskError for duplicates, and when there are no queries.
    """
    if config.queries.tasks is None:
        raise ConfigError(
            "queries.tasks is not set, so there are no tasks to prepare. Outcomes are read by jobs/import_outcomes.py."
        )
    known, tasks = known_tasks(config.queries.custom_tasks()), config.queries.tasks.options()
    settings = {"tasks": tasks, "limit": limit}
    queries = store.queries()
    output = Output.plan("prepare_queries", queries, settings, force=force)

    def write() -> dict[str, int]:
        kept = quotas(_count(lambda: _load(tasks, known)), limit)
        if not kept:
            options = ", ".join(f"queries.tasks.{name}.num_train, num_validation, num_test" for name in tasks)
            raise TaskError(f"There are no queries: the tasks {sorted(tasks)} have none. Raise one of {options}.")
        output.begin()
        with queries.writer() as writer:
            rows = keep_first(_load(tasks, known), kept)
            while batch := list(itertools.islice(rows, BATCH_ROWS)):
                # Rows to columns: the fields of a Query are QUERIES' columns, in their order.
                writer.write_batch(pa.RecordBatch.from_arrays([pa.array(c) for c in zip(*batch, strict=True)], schema=QUERIES))
        return {"queries": kept.total(), **{f"{task}/{split}": number for (task, split), number in kept.items()}}

    return make(config, output, write)


def read_queries(store: ArtifactStore, limit: int | None = None, splits: Sequence[str] | None = None) -> LocalRows:
    """All of queries/, checked, with the columns of `schemas.QUERIES`; with `limit` so many of them, see `quotas`; of these
    `splits` alone, where they are given.

    Raises ArtifactMissing, and ArtifactError naming the query for a duplicate query_id, a split that does not exist or a
    reference that is not a JSON object; also when there are none.
    """
    queries = store.queries().require()
    where = f"queries: {queries.path}"
    num_rows = queries.num_rows()
    if not num_rows:
        raise ArtifactError(f"{where} has no rows. Run: {queries.made_by} --config FILE --force")
    for (ids,) in in_buckets(num_rows, (batch["query_id"] for batch in queries.iter_batches(["query_id"]))):
        check_unique(ids, where)
    rows = _checked(queries, where, limit)
    if splits is not None:
        rows = (batch.filter(pc.is_in(batch["split"], pa.array(splits))) for batch in rows)
    return LocalRows(rows, queries.schema)


def _checked(queries: Dataset, where: str, limit: int | None) -> Iterator[pa.RecordBatch]:
    """The rows that `limit` keeps: the same ones that `run_prepare_queries` keeps of these."""
    # Counted down over all batches by `_within`.
    left = None if limit is None else quotas(_groups(queries), limit)
    for batch in queries.iter_batches(batch_rows=READ_ROWS):
        check_splits(batch, where)
        for row, reference in enumerate(batch["reference"].to_pylist()):
            if not _is_json_object(reference):
                query_id = batch["query_id"][row]
                raise ArtifactError(f"{where}: query {query_id}: `reference` must be a JSON object, there is {reference!r:.60}.")
        yield batch if left is None else batch.filter(_within(batch, left))


def tasks_of(queries: LocalRows) -> set[str]:
    return {task for tasks in queries.column("task") for task in tasks.unique().to_pylist()}


def check_splits(queries: pa.Table | pa.RecordBatch, where: str) -> None:
    """Raises ArtifactError naming the first query (columns: query_id, split) whose split does not exist."""
    row = pc.index(pc.is_in(queries["split"], pa.array(SPLITS)), False).as_py()
    if row >= 0:
        query_id, split = queries["query_id"][row].as_py(), queries["split"][row].as_py()
        raise ArtifactError(f"{where}: query {query_id!r} has the split {split!r}, must be one of {SPLITS}.")


def quotas(available: Mapping[Group, int], limit: int | None) -> Counter[Group]:
    """How many queries of each (task, split) `limit` keeps: proportional shares that sum to it, every group at least one.

    With fewer than one for each group, the larger ones come first. Shares are rounded by largest remainder.

    >>> quotas({("t", "train"): 90, ("t", "test"): 9}, 20)
    Counter({('t', 'train'): 18, ('t', 'test'): 2})
    """
    if limit is None or limit >= sum(available.values()):
        return Counter(available)
    # Stable: of groups of one size the one that comes first goes first, so a limit keeps the same queries each time.
    by_size = sorted(available, key=lambda group: -available[group])[:limit]
    spare, others = limit - len(by_size), sum(available[group] - 1 for group in by_size)
    # Each gets 1, and of the spare ones its share by size: whole parts first, then the largest fractions.
    shares = {group: divmod(spare * (available[group] - 1), max(others, 1)) for group in by_size}
    kept = Counter({group: 1 + whole for group, (whole, _) in shares.items()})
    by_fraction = sorted(by_size, key=lambda group: -shares[group][1])
    kept.update(by_fraction[: limit - kept.total()])
    return kept


def _load(tasks: Mapping[str, Mapping[str, Any]], known: Mapping[str, Task]) -> Iterator[Query]:
    for name, options in tasks.items():
        yield from get_task(name, known).load(options)


def _count(load: Callable[[], Iterator[Query]]) -> Counter[Group]:
    """Queries of each (task, split). Raises TaskError naming both places of a question that comes twice."""
    counts: Counter[Group] = Counter()
    # An id is 16 hex digits, 64 bits: an unsigned integer each.
    ids = array("Q")
    for query in load():
        counts[query.task, query.split] += 1
        ids.append(int(query.query_id, 16))
    # Over the same memory, sorted in place: no second copy.
    in_order = np.frombuffer(ids, dtype=np.uint64)
    in_order.sort()
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if len(twice):
        # Read once more, as texts were not kept.
        raise _twice(load(), int(twice[0]))
    return counts


def _twice(queries: Iterator[Query], query_id: int) -> TaskError:
    """For the question with this id, which comes twice."""
    seen: Counter[Group] = Counter()
    places = []
    for query in queries:
        seen[query.task, query.split] += 1
        if int(query.query_id, 16) == query_id:
            task, question = query.task, query.question
            places.append(f"query {seen[query.task, query.split]:,} of {query.split}")
    return TaskError(
        f"{task}: the question {question[:60]!r} comes twice: {' and '.join(places)}. Remove one; a question in two splits would "
        "also be a leak."
    )


def keep_first(queries: Iterator[Query], kept: Mapping[Group, int]) -> Iterator[Query]:
    """The first `kept` queries of every group."""
    seen: Counter[Group] = Counter()
    for query in queries:
        group = (query.task, query.split)
        seen[group] += 1
        if seen[group] <= kept.get(group, 0):
            yield query


def _groups(queries: Dataset) -> Counter[Group]:
    groups: Counter[Group] = Counter()
    for batch in queries.iter_batches(["task", "split"]):
        groups.update(zip(batch["task"].to_pylist(), batch["split"].to_pylist(), strict=True))
    return groups


def _within(batch: pa.RecordBatch, left: Counter[Group]) -> pa.Array:
    """Mask, bool, (num_rows,): the first `left` rows of each group, which are taken off it."""
    groups = zip(batch["task"].to_pylist(), batch["split"].to_pylist(), strict=True)
    mask = np.zeros(batch.num_rows, dtype=bool)
    for row, group in enumerate(groups):
        mask[row] = left[group] > 0
        left[group] -= 1
    return pa.array(mask)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


STAGE = Stage("prepare_queries", run_prepare_queries, reads=(), writes=("queries",))
