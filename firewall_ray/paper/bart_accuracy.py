"""baselines/qualities*/ and grades/ -> figures 3 and 4: whether responses of a higher BARTScore are right more often.

Rows in: the qualities of both models' samples, which Hybrid LLM has of the train split and `bart_qualities.py` adds of the test
split, their verdicts, and labels/ for task and split. Rows out: bins, by model and task. Runs in the driver; in memory are ids, and
the responses of the queries that are drawn.
"""

import heapq
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.base import PairConfig
from firewall_ray.config.run import EvaluationConfig, RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.paper.binned import Bin, bin_responses
from firewall_ray.policy import tie_hash
from firewall_ray.schemas import QUALITIES
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

SPLITS = ("test", "train")
LABEL_COLUMNS = ["query_id", "task", "split"]
ByModel = dict[str, dict[str, list[Bin]]]  # model key -> task -> bins


def qualities_of(store: ArtifactStore, split: str, key: str) -> Dataset:
    """Where the BARTScores of a model's responses lie. Those of Hybrid LLM hold the train and the validation split."""
    if split == "train":
        return store.baseline(f"qualities/{key}", QUALITIES)
    return replace(store.baseline(f"qualities_test/{key}", QUALITIES), made_by="python jobs/paper.py")


def draw_queries(rows: pa.Table, per_task: int) -> pa.Table:
    """At most `per_task` rows of each task: those whose ids have the lowest hash, so the order of the rows decides nothing.

    A smaller number draws a part of what a larger one draws. rows: with query_id and task.
    """
    ids, tasks = rows["query_id"].to_pylist(), np.array(rows["task"].to_pylist(), dtype=np.str_)
    drawn: list[int] = []
    for task in np.unique(tasks):
        drawn += heapq.nsmallest(per_task, np.flatnonzero(tasks == task).tolist(), key=lambda row: tie_hash(ids[row]))
    return rows.take(pa.array(sorted(drawn), pa.int64()))


def inputs_of(store: ArtifactStore, pair: PairConfig) -> dict[str, Any]:
    """Identities of what the two figures read; None for what is not there, which leaves a figure out."""
    keys = (pair.weak, pair.strong)
    datasets = {f"{split}/{key}": qualities_of(store, split, key) for split in SPLITS for key in keys}
    datasets |= {f"grades/{key}": store.grades(key) for key in keys}
    return {name: dataset.identity() if _is_there(dataset) else None for name, dataset in datasets.items()}


def why_missing(store: ArtifactStore, pair: PairConfig, split: str) -> str | None:
    """What keeps the split's figure from being drawn, as a sentence's end; None where nothing does."""
    for key in (pair.weak, pair.strong):
        dataset = qualities_of(store, split, key)
        if not _is_there(dataset):
            return f"{dataset.kind}/ has no finished BARTScores of the {split} split; they are made with the routers of Hybrid LLM"
        if not _is_there(store.grades(key)):
            return f"grades/{key}/, the verdicts on the responses, is not there"
    return None


def bin_by_bart_score(config: RunConfig, store: ArtifactStore, split: str) -> ByModel:
    """Of both models of the pair, task by task. Raises ArtifactError where qualities and grades do not fit each other."""
    labels = store.labels().require(LABEL_COLUMNS).read(LABEL_COLUMNS)
    labels = labels.filter(pc.equal(labels["split"], split))
    found: ByModel = {}
    for key in (config.pair.weak, config.pair.strong):
        dataset, grades = qualities_of(store, split, key).require(), store.grades(key).require(["query_id", "correct"])
        scored = labels.filter(pc.is_in(labels["query_id"], dataset.read(["query_id"])["query_id"].combine_chunks()))
        drawn = draw_queries(scored, config.paper.bart_score_queries)
        qualities, correct = _lists(dataset, "qualities", drawn), _lists(grades, "correct", drawn)
        found[key] = {}
        for task in sorted(set(drawn["task"].to_pylist())):
            ids = drawn.filter(pc.equal(drawn["task"], task))["query_id"].to_pylist()
            found[key][task] = _bins(ids, qualities, correct, grades, config.evaluation)
    return found


def _bins(
    ids: list[str],
    qualities: Mapping[str, list[float]],
    correct: Mapping[str, list[bool] | None],
    grades: Dataset,
    settings: EvaluationConfig,
) -> list[Bin]:
    """Of the responses of these queries. Each response counts as one: a query has as many as samples were scored."""
    quality: list[float] = []
    verdicts: list[bool] = []
    keys = []
    for query_id in ids:
        scores, right = qualities[query_id], correct.get(query_id) or []
        # Hybrid LLM may have scored fewer samples than there are; the first ones then.
        if len(right) < len(scores):
            raise ArtifactError(
                f"grades: {grades.path} has {len(right)} verdicts on query {query_id!r}, of whose samples {len(scores)} have a "
                f"BARTScore. Grade the samples again: {grades.made_by} --config FILE --force"
            )
        quality += scores
        verdicts += right[: len(scores)]
        keys += [f"{query_id} {number}" for number in range(len(scores))]
    return bin_responses(np.array(quality), np.array(verdicts), keys, settings.num_bins, settings.seed)


def _lists(dataset: Dataset, column: str, drawn: pa.Table) -> dict[str, Any]:
    """The column's list of each drawn query that has one, by query id."""
    wanted = drawn["query_id"].combine_chunks()
    found: dict[str, Any] = {}
    for batch in dataset.iter_batches(["query_id", column]):
        rows = batch.filter(pc.is_in(batch["query_id"], wanted))
        found.update(zip(rows["query_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    return found


def _is_there(dataset: Dataset) -> bool:
    return dataset.state() in ("finished", "foreign")
