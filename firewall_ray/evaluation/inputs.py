"""What the report reads: the labelled test queries, and every router's scores brought into their order, checked.

Rows in: labels/ and scores/<router>/. Runs in the driver. Queries are sorted by query id, so that no result depends on
the order in which files were written.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.schemas import LABEL_DESIGNS
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import check_unique

Floats = NDArray[np.float64]
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
    dataset = store.labels().require(columns := ["query_id", "task", "split", "prompt", *rates])
    table = dataset.read(columns)
    check_unique(table["query_id"], f"labels: {dataset.path}", REPEATED)
    test = table.filter(pc.equal(table["split"], "test"))[:limit].sort_by("query_id")
    if not len(test):
        splits = sorted(set(table["split"].to_pylist()))
        raise ArtifactError(
            f"labels: {dataset.path} has no query of split 'test' (its splits: {splits}), so there is nothing to report on. "
            "Give the tasks test queries (queries.tasks.<task>.num_test) and run the jobs again."
        )
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
        prompts=test["prompt"].to_pylist(),
        tasks=np.array(test["task"].to_pylist(), dtype=np.str_),
        pass_rate_weak=test["pass_rate_weak"].to_numpy().astype(np.float64),
        pass_rate_strong=test["pass_rate_strong"].to_numpy().astype(np.float64),
        labels={design: test[design].to_numpy().astype(np.float64) for design in designs},
    )
    return queries, table.filter(pc.equal(table["split"], "validation"))["query_id"].to_pylist()


def router_names(store: ArtifactStore) -> list[str]:
    """The folders under scores/, sorted. Raises ArtifactMissing when there is none."""
    names = [name for name in store.children("scores") if not name.startswith(("_", "."))]
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
    table = dataset.read()
    check_unique(table["query_id"], f"scores: router {name!r}, {dataset.path}", REPEATED)
    scores = table["p_weak"].to_numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ArtifactError(
            f"scores: router {name!r}, {dataset.path}: p_weak is {scores[bad[0]]} for query {table['query_id'][bad[0]]} (and "
            f"{len(bad) - 1} more are not finite). Score them again: python jobs/score.py --config FILE --force"
        )
    p_weak = _aligned(queries.query_ids, table["query_id"], scores)
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
    calibration = _aligned(validation_ids, table["query_id"], scores)
    complete = len(calibration) > 0 and not np.isnan(calibration).any()
    return RouterScores(name, p_weak, frozenset(covered), calibration if complete else np.empty(0))


def _aligned(wanted: list[str], query_ids: pa.ChunkedArray, scores: Floats) -> Floats:
    """The scores in the order of `wanted`; NaN where there is none."""
    rows = pc.index_in(pa.array(wanted, pa.string()), value_set=query_ids.combine_chunks())
    positions = rows.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(positions >= 0, np.append(scores, np.nan)[positions], np.nan)
