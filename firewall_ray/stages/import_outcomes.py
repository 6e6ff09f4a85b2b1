"""Outcomes that exist already -> queries/ and grades/<model>/: logs or a published evaluation in place of sampling and grading.

Rows in: a file with a row for each answer of a model to a query and whether it was right, or a row for each query with the
verdicts of all models. Rows out: the two datasets that `jobs/label.py` reads, so that every stage after it works unchanged. Runs
in the driver.

A question's answers may lie anywhere in the file, so rows are split into buckets on the local disk by a hash of the question
(`store/joins.py`). A bucket at a time is in memory, where it becomes queries with their grades; these are merged back into the
order in which the questions first come.

What the file leaves open is decided in `outcome_answers.py`.
"""

import hashlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from firewall_ray.config.queries import OutcomesConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError, TaskError
from firewall_ray.schemas import GRADES, QUERIES
from firewall_ray.stages.outcome_answers import Asked, collect, grades_of, verdicts_of
from firewall_ray.stages.prepare_queries import quotas
from firewall_ray.stages.stage import Output, Stage, StageResult, action_of
from firewall_ray.store.dataset import BATCH_ROWS
from firewall_ray.store.joins import MAX_BUCKETS, READ_ROWS, LocalRows, Spill, spill_folder
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import make_query, query_id
from firewall_ray.tasks.outcome_rows import Outcome, read_outcomes
from firewall_ray.tasks.splits import draw_split

BUCKET_BYTES = 4 * 2**20  # of the file; as Python objects about 30 MiB
MERGE_ROWS = 64  # of each bucket in memory while they are merged
# What the file calls the models that stand for each key: one, or a family.
Names = Mapping[str, list[str]]

# What lies on the local disk in between: rows of the file, then queries. number: of a row, and of the first that asks a query.
ROWS = pa.schema(
    [
        # query_id is ours, a hash of task and question, by which rows are put into buckets; file_id is the file's own.
        *(pa.field(name, pa.string()) for name in ("query_id", "where", "task", "question", "model")),
        pa.field("verdicts", pa.list_(pa.bool_())),
        pa.field("greedy", pa.bool_()),
        pa.field("sample_index", pa.int64()),
        pa.field("file_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("number", pa.int64()),
    ]
)
_GRADE = pa.struct([GRADES.field(name) for name in ("model", "correct", "greedy_correct", "error")])
QUERIES_AND_GRADES = pa.schema([*QUERIES, pa.field("number", pa.int64()), pa.field("grades", pa.list_(_GRADE))])

logger = logging.getLogger("firewall_ray")


def run_import(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> list[StageResult]:
    """Write queries/ and the grades of every model. One result a dataset.

    `limit` keeps so many queries, see `prepare_queries.quotas`. Everything is read and checked before anything is written. Raises
    ConfigError where the config does not say what to import, and TaskError naming file, row and column.
    """
    outcomes = config.queries.outcomes
    if outcomes is None:
        raise ConfigError("queries.outcomes is not set. Name the file: queries: {outcomes: {path: outcomes.csv}}.")
    names = _model_names(config, outcomes)
    path = Path(outcomes.path).expanduser()
    settings = {"outcomes": outcomes.model_dump(mode="json"), "models": names, "content": _digest(path), "limit": limit}
    datasets = {"queries": store.queries(), **{key: store.grades(key) for key in names}}
    outputs = {
        name: Output.plan("import_outcomes", dataset, settings, force=force, dataset=name) for name, dataset in datasets.items()
    }
    if action_of(outputs.values()) != "skip":
        for output in outputs.values():
            output.action = "run"  # of one file: all or none
        with spill_folder() as folder:
            found = _sorted_out(path, outcomes, names, folder)
            kept = quotas(found.num_queries, limit)
            _write(config, outputs, found.in_order(kept), kept)
    return [output.result() for output in outputs.values()]


def _sorted_out(path: Path, outcomes: OutcomesConfig, names: Names, folder: Path) -> "Found":
    """Everything read and checked, a bucket at a time. Raises TaskError, also for a model without rows."""
    num_rows: Counter[str] = Counter()
    wanted = {name for family in names.values() for name in family}
    rows = read_outcomes(path, outcomes, wanted)
    # On the disk every answer has its question: of a row with many a copy each.
    copies = 1 if outcomes.columns.verdicts is None else len(wanted)
    spill = Spill(_batches(rows, wanted, num_rows), ROWS, _num_buckets(path, copies), folder / "rows")
    _check_models(num_rows, names, str(path))
    found = Found()
    for bucket in range(len(spill.paths)):
        asked = collect(_outcomes(spill.bucket(bucket)))
        # The rows have become queries: the disk holds a bucket once.
        spill.paths[bucket].unlink()
        rows_of_bucket = [_row(task, question, query, outcomes, names) for (task, question), query in asked.items()]
        found.num_queries.update((row["task"], row["split"]) for row in rows_of_bucket)
        batches = (
            pa.RecordBatch.from_pylist(rows_of_bucket[start : start + MERGE_ROWS], QUERIES_AND_GRADES)
            for start in range(0, len(rows_of_bucket), MERGE_ROWS)
        )
        # An open file each, hence MAX_BUCKETS.
        found.buckets.append(LocalRows(batches, QUERIES_AND_GRADES))
    return found


def _num_buckets(path: Path, copies: int) -> int:
    """Of about BUCKET_BYTES of text: what compressed files hold is several times as much."""
    factor = copies * (1 if path.name.lower().endswith((".csv", ".jsonl")) else 8)
    return min(max(-(-path.stat().st_size * factor // BUCKET_BYTES), 1), MAX_BUCKETS)


def _batches(rows: Iterator[Outcome], wanted: Set[str], num_rows: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The rows of these models as `ROWS`; all are counted by model on the way."""

    def kept() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            num_rows[row.model] += 1
            if row.model in wanted:
                yield {**row._asdict(), "file_id": row.query_id, "query_id": query_id(row.task, row.question), "number": number}

    # One iterator for all turns: islice goes on where it left off.
    of_models = kept()
    while batch := list(itertools.islice(of_models, READ_ROWS)):
        yield pa.RecordBatch.from_pylist(batch, ROWS)


def _outcomes(rows: pa.Table) -> Iterator[tuple[int, Outcome]]:
    """Back from a bucket, each with its number in the file."""
    for batch in rows.to_batches(max_chunksize=MERGE_ROWS):
        for row in batch.to_pylist():
            number, row["query_id"] = row.pop("number"), row.pop("file_id")
            yield number, Outcome(**row)


@dataclass
class Found:
    """buckets: of `QUERIES_AND_GRADES`, each by `number`. num_queries: of every (task, split)."""

    buckets: list[LocalRows] = field(default_factory=list)
    num_queries: Counter[tuple[str, str]] = field(default_factory=Counter)

    def in_order(self, kept: Mapping[tuple[str, str], int]) -> Iterator[dict[str, Any]]:
        """The first `kept` queries of every (task, split), in the order in which the file first asks them."""
        streams = ((row for batch in bucket.batches() for row in batch.to_pylist()) for bucket in self.buckets)
        left = dict(kept)
        # Each bucket is in order already: `collect` keeps the order in which questions first come.
        for row in heapq.merge(*streams, key=lambda row: row["number"]):
            group = (row["task"], row["split"])
            if left.get(group, 0) > 0:
                left[group] -= 1
                yield row


def _check_models(num_rows: Mapping[str, int], names: Names, where: str) -> None:
    named = {name: key for key, family in names.items() for name in family}
    for name, key in named.items():
        if not num_rows[name]:
            raise TaskError(
                f"{where} has no rows of {name!r}, the model {key}. It has {sorted(num_rows)[:20]}. Say what it calls the models: "
                f"queries.outcomes.models: {{{key}: ...}}."
            )
    others = {name: count for name, count in num_rows.items() if name not in named}
    if others:
        logger.info("import_outcomes: left out %s rows of the models %s", f"{sum(others.values()):,}", ", ".join(sorted(others)))


def _row(task: str, question: str, asked: Asked, outcomes: OutcomesConfig, names: Names) -> dict[str, Any]:
    """The query as a row of `QUERIES_AND_GRADES`."""
    # An empty reference: the verdicts are there, and nothing is graded with it.
    query = make_query(task, asked.split or draw_split(question, outcomes.splits), question, "{}")
    found = {key: verdicts_of(asked.answers, family) for key, family in names.items()}
    grades = grades_of(question, {key: verdicts for key, verdicts in found.items() if verdicts is not None})
    return {**query._asdict(), "number": asked.number, "grades": grades}


def _write(
    config: RunConfig,
    outputs: Mapping[str, Output],
    rows: Iterator[dict[str, Any]],
    kept: Mapping[tuple[str, str], int],
) -> None:
    """All datasets at the same time, in one pass over the rows of `QUERIES_AND_GRADES`."""
    num_queries = sum(kept.values())
    # By dataset, which are "queries" and the models' keys.
    counts: dict[str, Counter[str]] = {name: Counter() for name in outputs}
    counts["queries"].update({"rows": num_queries, **{f"{task}/{split}": n for (task, split), n in kept.items()}})
    for output in outputs.values():
        output.begin()
    with ExitStack() as stack:
        writers = {name: stack.enter_context(output.dataset.writer()) for name, output in outputs.items()}
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            writers["queries"].write_table(pa.Table.from_pylist(batch, schema=QUERIES))
            grades = [{"query_id": row["query_id"], "task": row["task"], **grade} for row in batch for grade in row["grades"]]
            for key in outputs.keys() - {"queries"}:
                of_model = [grade for grade in grades if grade["model"] == key]
                writers[key].write_table(pa.Table.from_pylist(of_model, schema=GRADES))
                counts[key]["rows"] += len(of_model)
                counts[key]["errors"] += sum(grade["error"] is not None for grade in of_model)
    # Finished once all are written: of one file, so a kill before this leaves all of them to be made again.
    for name, output in outputs.items():
        if name != "queries":
            counts[name]["queries_without_answers"] = num_queries - counts[name]["rows"]
        output.finish(config, dict(counts[name]))


def _model_names(config: RunConfig, outcomes: OutcomesConfig) -> dict[str, list[str]]:
    if outcomes.models is None:
        return {key: [key] for key in config.models}
    unknown = sorted(outcomes.models.keys() - config.models.keys())
    if unknown:
        raise ConfigError(f"queries.outcomes.models names {unknown[0]!r}, but models has only {sorted(config.models)}.")
    names = {key: [family] if isinstance(family, str) else family for key, family in outcomes.models.items()}
    counts = Counter(name for family in names.values() for name in family)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"queries.outcomes.models gives two models the same name, {twice[0]!r}: {outcomes.models}.")
    return names


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise TaskError(f"queries.outcomes.path: {path}: {e.strerror}. Name a file of outcomes.") from e


STAGE = Stage("import_outcomes", run_import, reads=(), writes=("queries", "grades"))
