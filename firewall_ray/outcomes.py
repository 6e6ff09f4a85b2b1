"""Outcomes that exist already -> queries/ and grades/<model>/: logs or a published evaluation in place of sampling and grading.

Rows in: a file with a row for each answer of a model to a query and whether it was right. Rows out: the two datasets that
`jobs/label.py` reads, so that every stage after it works unchanged. Runs in the driver. Rows are streamed; what stays in
memory is each question once, and a verdict an answer.

What the file leaves open:

* A query is its text: rows of the same text and task are answers to the same query, whatever ids they carry.
* The greedy answer, where no row is marked as greedy, counts as right where at least half of the samples are.
* Labels need as many samples of both models. Where a query has 32 of one and 1 of another, the fewer are repeated to the
  least common multiple, which changes no pass rate.
* A pass rate of n samples becomes n verdicts, in an order drawn by a hash: only `win_rate` pairs samples by their order.
* An answer without a verdict (null, empty) makes its model's grade an error, which labels leave out and count.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from firewall_ray.artifacts import BATCH_ROWS, ArtifactStore, Dataset
from firewall_ray.config import RunConfig
from firewall_ray.errors import ConfigError, TaskError
from firewall_ray.job import StageResult
from firewall_ray.outcome_rows import Outcome, read_outcomes
from firewall_ray.queries import keep_first, quotas
from firewall_ray.queries_config import OutcomesConfig
from firewall_ray.schemas import GRADES, QUERIES
from firewall_ray.tasks.base import Query, make_query
from firewall_ray.tasks.splits import draw_split

MAX_SAMPLES = 10_000  # of a query, after repetition

logger = logging.getLogger("firewall_ray")


@dataclass
class Answers:
    """Of one model to one query. verdicts: by (the file's id, number of the sample)."""

    verdicts: dict[tuple[str, int], list[bool]] = field(default_factory=dict)
    greedy: bool | None = None
    error: str | None = None

    def samples(self) -> list[bool]:
        """In the order of their numbers; the greedy answer alone where nothing was sampled."""
        found = [verdict for key in sorted(self.verdicts) for verdict in self.verdicts[key]]
        return found or ([] if self.greedy is None else [self.greedy])


@dataclass
class Asked:
    """One query with the answers of every model, by its key."""

    split: str | None
    answers: dict[str, Answers] = field(default_factory=dict)


def run_import(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> list[StageResult]:
    """Write queries/ and the grades of every model. One result a dataset.

    `limit` keeps so many queries, see `queries.quotas`. Everything is read and checked before anything is written. Raises
    ConfigError where the config does not say what to import, and TaskError naming file, row and column.
    """
    outcomes = config.queries.outcomes
    if outcomes is None:
        raise ConfigError("queries.outcomes is not set. Name the file: queries: {outcomes: {path: outcomes.csv}}.")
    names = _model_names(config, outcomes)
    path = Path(outcomes.path).expanduser()
    settings = {"outcomes": outcomes.model_dump(mode="json"), "models": names, "content": _digest(path), "limit": limit}
    datasets = {"queries": store.queries(), **{key: store.grades(key) for key in names}}
    actions = {name: dataset.plan(settings, force=force) for name, dataset in datasets.items()}
    if set(actions.values()) != {"skip"}:
        asked = collect(read_outcomes(path, outcomes, names), names, str(path))
        queries = _queries(asked, outcomes, limit)
        num_samples = {query.query_id: _num_samples(query, asked[query.task, query.question]) for query in queries}
        run = config.model_dump(mode="json")
        _write(datasets["queries"], settings, run, [query._asdict() for query in queries], QUERIES, _split_counts(queries))
        for key in names:
            grades = [row for query in queries if (row := _grade(query, asked, key, num_samples)) is not None]
            counts = {
                "errors": sum(row["error"] is not None for row in grades),
                "queries_without_answers": len(queries) - len(grades),
            }
            _write(datasets[key], settings, run, grades, GRADES, counts)
    action = "skip" if set(actions.values()) == {"skip"} else "run"
    return [
        {"stage": "import_outcomes", "dataset": name, "action": action, "path": dataset.path, **dataset.manifest()["counts"]}
        for name, dataset in datasets.items()
    ]


def collect(rows: Iterator[Outcome], names: Mapping[str, str], where: str) -> dict[tuple[str, str], Asked]:
    """The answers of every (task, question), in the order in which the questions first come.

    names: what the file calls the model of each key. Raises TaskError for an answer that comes twice, for a question in two
    splits, and for a model without rows.
    """
    keys = {name: key for key, name in names.items()}
    asked: dict[tuple[str, str], Asked] = {}
    num_rows: Counter[str] = Counter()
    for row in rows:
        num_rows[row.model] += 1
        if row.model not in keys:
            continue
        query = asked.setdefault((row.task, row.question), Asked(row.split))
        if query.split != row.split:
            raise TaskError(f"{row.where}: the question is of the split {row.split!r}, and of {query.split!r} in a row before.")
        _add(query.answers.setdefault(keys[row.model], Answers()), row)
    for key, name in names.items():
        if not num_rows[name]:
            raise TaskError(
                f"{where} has no rows of {name!r}, the model {key}. It has {sorted(num_rows)[:20]}. Say what it calls the models: "
                f"queries.outcomes.models: {{{key}: ...}}."
            )
    others = {name: count for name, count in num_rows.items() if name not in keys}
    if others:
        logger.info("import_outcomes: left out %s rows of the models %s", f"{sum(others.values()):,}", ", ".join(sorted(others)))
    return asked


def _add(answers: Answers, row: Outcome) -> None:
    if row.verdicts is None:
        answers.error = answers.error or f"{row.where} has no verdict"
    elif row.greedy:
        if len(row.verdicts) > 1:
            raise TaskError(f"{row.where}: a greedy answer is one verdict, but this is the pass rate of {len(row.verdicts)}.")
        answers.greedy = row.verdicts[0] if answers.greedy is None else answers.greedy
    else:
        key = (row.query_id, len(answers.verdicts) if row.sample_index is None else row.sample_index)
        if key in answers.verdicts:
            raise TaskError(
                f"{row.where}: sample {row.sample_index} of {row.model!r} on this question comes twice. Remove one; or, where the "
                "number means something else, set queries.outcomes.columns.sample_index: null."
            )
        answers.verdicts[key] = row.verdicts


def _queries(asked: Mapping[tuple[str, str], Asked], outcomes: OutcomesConfig, limit: int | None) -> list[Query]:
    queries = [
        make_query(task, query.split or draw_split(question, outcomes.splits), question, "{}")
        for (task, question), query in asked.items()
    ]
    return list(keep_first(iter(queries), quotas(Counter((query.task, query.split) for query in queries), limit)))


def _num_samples(query: Query, asked: Asked) -> int:
    """n of a query: the least common multiple over its models."""
    sizes = {key: len(answers.samples()) for key, answers in asked.answers.items() if answers.error is None}
    n = math.lcm(*sizes.values())
    if n > MAX_SAMPLES:
        raise TaskError(
            f"The question {query.question[:60]!r} has {sizes} answers. Both models need the same number, and to repeat them to "
            f"one would take {n:,}, more than {MAX_SAMPLES:,}. Leave answers out."
        )
    return n


def _grade(query: Query, asked: Mapping[tuple[str, str], Asked], key: str, num_samples: Mapping[str, int]) -> dict[str, Any] | None:
    """The row of `schemas.GRADES`; None where this model was not asked."""
    answers = asked[query.task, query.question].answers.get(key)
    if answers is None:
        return None
    row = {"query_id": query.query_id, "task": query.task, "model": key, "error": answers.error}
    if answers.error is not None:
        return {**row, "correct": None, "greedy_correct": None}
    samples = answers.samples()
    greedy = 2 * sum(samples) >= len(samples) if answers.greedy is None else answers.greedy
    return {**row, "correct": samples * (num_samples[query.query_id] // len(samples)), "greedy_correct": greedy}


def _write(
    dataset: Dataset,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    counts: Mapping[str, int],
) -> None:
    dataset.begin(settings)
    with dataset.writer() as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            writer.write_table(pa.Table.from_pylist(rows[start : start + BATCH_ROWS], schema=schema))
    dataset.finish(config, {"rows": len(rows), **counts})


def _split_counts(queries: list[Query]) -> dict[str, int]:
    return {f"{task}/{split}": count for (task, split), count in Counter((q.task, q.split) for q in queries).items()}


def _model_names(config: RunConfig, outcomes: OutcomesConfig) -> dict[str, str]:
    """What the file calls the model of each key."""
    if outcomes.models is None:
        return {key: key for key in config.models}
    unknown = sorted(outcomes.models.keys() - config.models.keys())
    if unknown:
        raise ConfigError(f"queries.outcomes.models names {unknown[0]!r}, but models has only {sorted(config.models)}.")
    if len(set(outcomes.models.values())) < len(outcomes.models):
        raise ConfigError(f"queries.outcomes.models gives two models the same name: {outcomes.models}.")
    return dict(outcomes.models)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise TaskError(f"queries.outcomes.path: {path}: {e.strerror}. Name a file of outcomes.") from e
