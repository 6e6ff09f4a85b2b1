"""What the report reads: the labelled test queries, and every router's scores brought into their order, checked.

Rows in: labels/ and scores/<router>/. Runs in the driver. Queries are sorted by query id, so that no result depends on
the order in which files were written. Both are streamed: in memory are the test queries, the ids of the validation split and a
batch; ids are compared on the local disk, a bucket at a time (`spill.py`).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.evaluation.controls import CONTROLS
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import READ_ROWS, Spill, num_buckets, spill_folder
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import IDS, check_unique, in_buckets

Floats = NDArray[np.float64]
WANTED = IDS.append(pa.field("place", pa.int64()))
REPEATED = "Remove the repeated rows: two files of the same run in one folder are the usual cause."

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class LabelledQueries:
    """Queries of one split, sorted by query id. Arrays are (num_queries,); rates and labels float64 in [0, 1]."""

    query_ids: list[str]
    prompts: list[str]
    tasks: NDArray[np.str_]
    pass_rate_weak: Floats
    pass_rate_strong: Floats
    labels: dict[str, Floats]  # by label design

    def __len__(self) -> int:
        return len(self.query_ids)

    def task_names(self) -> list[str]:
        return sorted(set(self.tasks.tolist()))


@dataclass(frozen=True)
class RouterScores:
    """One router's p_weak on the test queries, (num_queries,); NaN in the tasks that it leaves out.

    calibration: its scores of the validation split, float64; empty where it has not scored all of it.
    """

    name: str
    p_weak: Floats
    tasks: frozenset[str]
    calibration: Floats = field(default_factory=lambda: np.empty(0))


def read_labels(store: ArtifactStore, designs: list[str], limit: int | None = None) -> tuple[LabelledQueries, list[str]]:
    """The test split with the label columns of `designs` (its first `limit` rows), and the validation split's query ids.

    Raises ArtifactError where there is no test query, a query id comes twice, or a rate is not in [0, 1].
    """
    rates = ["pass_rate_weak", "pass_rate_strong", *designs]
    dataset = store.labels().require(["query_id", "task", "split", "prompt", *rates])
    splits, validation_ids = _look_over(dataset)
    prompts: list[str] = []
    kept = []
    for batch in _first_of_test(dataset, ["query_id", "task", "prompt", *rates], limit):
        prompts += batch["prompt"].to_pylist()  # the widest column by far: not in Arrow as well
        kept.append(batch.select(["query_id", "task", *rates]))
    if not kept:
        raise ArtifactError(
            f"labels: {dataset.path} has no query of split 'test' (its splits: {sorted(splits)}), so there is nothing to report on."
            " Give the tasks test queries (queries.tasks.<task>.num_test) and run the jobs again."
        )
    unsorted = pa.Table.from_batches(kept)
    order = pc.sort_indices(unsorted, [("query_id", "ascending")])
    test = unsorted.take(order)
    for name in rates:
        values = test[name].to_numpy()
        wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if len(wrong):
            raise ArtifactError(
                f"labels: {dataset.path}, column {name!r}: {values[wrong[0]]} for query {test['query_id'][wrong[0]]}; it must "
                "lie in [0, 1]. Make the labels again: python jobs/label.py --config FILE --force"
            )
    queries = LabelledQueries(
        query_ids=test["query_id"].to_pylist(),
        prompts=[prompts[row] for row in order.to_numpy()],
        tasks=np.array(test["task"].to_pylist(), dtype=np.str_),
        pass_rate_weak=test["pass_rate_weak"].to_numpy().astype(np.float64),
        pass_rate_strong=test["pass_rate_strong"].to_numpy().astype(np.float64),
        labels={design: test[design].to_numpy().astype(np.float64) for design in designs},
    )
    return queries, validation_ids


def _look_over(labels: Dataset) -> tuple[set[str], list[str]]:
    """The splits that there are, and the ids of the validation split. Raises ArtifactError where an id comes twice."""
    splits: set[str] = set()
    validation_ids: list[str] = []

    def ids() -> Iterator[pa.Array]:
        for batch in labels.iter_batches(["query_id", "split"], READ_ROWS):
            splits.update(batch["split"].unique().to_pylist())
            validation_ids.extend(batch["query_id"].filter(pc.equal(batch["split"], "validation")).to_pylist())
            yield batch["query_id"]

    for (bucket,) in in_buckets(labels.num_rows(), ids()):
        check_unique(bucket, f"labels: {labels.path}", REPEATED)
    return splits, validation_ids


def _first_of_test(labels: Dataset, columns: list[str], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows of the test split, or all of them; no batch is empty."""
    left = labels.num_rows() if limit is None else limit
    for batch in labels.iter_batches(["split", *columns]):
        of_test = batch.filter(pc.equal(batch["split"], "test")).slice(length=left).select(columns)
        left -= of_test.num_rows
        if of_test.num_rows:
            yield of_test
        if not left:
            return


def router_names(store: ArtifactStore) -> list[str]:
    """The folders under scores/ but for the controls', sorted. Raises ArtifactMissing when there is none."""
    names = [name for name in store.children("scores") if not name.startswith(("_", ".")) and name not in CONTROLS]
    if not names:
        raise ArtifactMissing(f"scores: no router under {store.root}/scores. Run: python jobs/score.py --config FILE")
    return names


def scores_label(router: str) -> str:
    """The label design that a router's p_weak is compared with: its own where it is named after one, else soft_block."""
    return router if router in LABEL_DESIGNS else "soft_block"


def read_scores(store: ArtifactStore, name: str, queries: LabelledQueries, validation_ids: list[str]) -> RouterScores:
    """A router's scores in the queries' order. Queries that were scored and not labelled are ignored.

    Raises ArtifactError where a query id comes twice, a score is not finite, no test query is scored, or only a part of a
    task's are: metrics over the scored part would compare routers on different queries.
    """
    dataset = store.scores(name).require()
    aligned = _aligned(dataset, [*queries.query_ids, *validation_ids], f"scores: router {name!r}, {dataset.path}")
    p_weak, calibration = aligned[: len(queries)], aligned[len(queries) :]
    missing = np.isnan(p_weak)
    if missing.all():
        raise ArtifactError(
            f"scores: router {name!r}, {dataset.path} scores none of the {len(queries):,} labelled test queries; its query ids "
            "belong to other queries. Score these (python jobs/score.py --config FILE --force), or move the folder away."
        )
    covered = set()
    for task in queries.task_names():
        of_task = queries.tasks == task
        num_missing = int((missing & of_task).sum())
        if num_missing == of_task.sum():
            logger.warning("report: router %s has no scores for task %s, so that task is left out for it.", name, task)
        elif num_missing:
            first = queries.query_ids[int(np.flatnonzero(missing & of_task)[0])]
            raise ArtifactError(
                f"scores: router {name!r}, {dataset.path} lacks {num_missing:,} of the {of_task.sum():,} labelled test queries of "
                f"task {task!r}, such as {first!r}. Score them all: python jobs/score.py --config FILE --force"
            )
        else:
            covered.add(task)
    complete = len(calibration) > 0 and not np.isnan(calibration).any()
    return RouterScores(name, p_weak, frozenset(covered), calibration if complete else np.empty(0))


def _aligned(scores: Dataset, wanted: list[str], where: str) -> Floats:
    """The p_weak of the `wanted` ids, in their order: float64, (num_wanted,); NaN where there is none.

    Raises ArtifactError where any id of the scores comes twice, or any score is not finite.
    """
    num_bad, first_bad = 0, ""

    def looked_over() -> Iterator[pa.RecordBatch]:
        nonlocal num_bad, first_bad
        for batch in scores.iter_batches(batch_rows=READ_ROWS):
            bad = np.flatnonzero(~np.isfinite(batch["p_weak"].to_numpy()))
            if len(bad) and not num_bad:
                first_bad = f"{batch['p_weak'][bad[0]]} for query {batch['query_id'][bad[0]]}"
            num_bad += len(bad)
            yield batch

    places = pa.table([pa.array(wanted, pa.string()), np.arange(len(wanted))], schema=WANTED)
    count = num_buckets(max(scores.num_rows(), len(wanted)))
    p_weak = np.full(len(wanted), np.nan)
    with spill_folder() as folder:
        scored = Spill(looked_over(), scores.schema, count, folder / "scores")
        asked = Spill(places.to_batches(max_chunksize=READ_ROWS), WANTED, count, folder / "wanted")
        for number in range(count):
            there, here = scored.bucket(number), asked.bucket(number)
            check_unique(there["query_id"], where, REPEATED)
            rows = pc.index_in(here["query_id"], value_set=there["query_id"].combine_chunks()).fill_null(-1).to_numpy()
            p_weak[here["place"].to_numpy()] = np.append(there["p_weak"].to_numpy(), np.float32(np.nan))[rows]
    if num_bad:
        raise ArtifactError(
            f"{where}: p_weak is {first_bad} (and {num_bad - 1} more are not finite). Score them again: "
            "python jobs/score.py --config FILE --force"
        )
    return p_weak
