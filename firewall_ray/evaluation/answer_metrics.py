"""Modules of Hugging Face's `evaluate` over the models' greedy answers: what `evaluation.metrics` adds to the report.

Rows in: the labelled test queries, of queries/ and of the pair's samples/<model>/. Out: `metrics` of each model and task of
report.json. Runs in the driver. Both datasets are streamed. In memory are the references and greedy answers of the test queries: a
module wants all of a task at once, since corpus measures such as BLEU are no means over queries.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.evaluate_module import AnswerMetricConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError, EvaluationError, FirewallRayError
from firewall_ray.evaluation.inputs import LabelledQueries
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import READ_ROWS
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.evaluate_grader import texts_of
from firewall_ray.tasks.evaluate_module import TextModule, load_text_module

QUERY_COLUMNS = ["query_id", "reference"]
SAMPLE_COLUMNS = ["query_id", "greedy_text"]
TEXT_REFERENCES = ("answer", "aliases")  # where a task's reference has its texts; HumanEval's has none

logger = logging.getLogger("firewall_ray")


class Unsuitable(NamedTuple):
    """Why a metric is left out of a task, as a notice on the page."""

    why: str


def inputs_of_metrics(config: RunConfig, store: ArtifactStore) -> dict[str, str]:
    """Identities of what the metrics read, by folder; empty without metrics. Raises ArtifactMissing naming what is not there."""
    if not config.evaluation.metrics:
        return {}
    found = {"queries": store.queries().require(QUERY_COLUMNS).identity()}
    for model in (config.pair.weak, config.pair.strong):
        found[f"samples/{model}"] = store.samples(model).require(SAMPLE_COLUMNS).identity()
    return found


def add_answer_metrics(report: dict[str, Any], config: RunConfig, store: ArtifactStore, queries: LabelledQueries) -> None:
    """Each metric's value into `report["models"][model][task]["metrics"]`, and a notice for each task that it is left out of.

    Raises TaskError where a module cannot be used, EvaluationError where it fails, ArtifactError where test queries have no answer.
    """
    metrics = config.evaluation.metrics
    if not metrics:
        return
    # First: a module that cannot be loaded is told before anything is read.
    modules = {name: load_text_module(metric.module or name, f"evaluation.metrics.{name}") for name, metric in metrics.items()}
    tasks = queries.task_names()
    for name, metric in metrics.items():
        if unknown := sorted(set(metric.tasks or ()) - set(tasks)):
            raise ConfigError(f"evaluation.metrics.{name}.tasks: there are no test queries of {unknown}; there are {tasks}.")
    references = _references(store.queries(), queries)
    for model in (config.pair.weak, config.pair.strong):
        answers = _answers(store.samples(model), queries)
        for task in tasks:
            ids = [query_id for query_id, of in zip(queries.query_ids, queries.tasks, strict=True) if of == task]
            of_task = [answers[query_id] for query_id in ids], [references[query_id] for query_id in ids]
            values = report["models"][model][task]["metrics"] = {}
            for name, metric in metrics.items():
                if metric.tasks is not None and task not in metric.tasks:
                    continue
                found = _value(modules[name], metric, *of_task)
                if isinstance(found, Unsuitable):
                    notice = f"The metric {name} is left out of {task}: {found.why}."
                    report["notices"] += [notice] if notice not in report["notices"] else []
                else:
                    values[name] = {"value": found if math.isfinite(found) else None, "num_queries": len(ids)}
            logger.info("report: %s of %s's answers to %s queries of %s", ", ".join(values), model, f"{len(ids):,}", task)


def _value(
    module: TextModule, metric: AnswerMetricConfig, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> float | Unsuitable:
    if module.references is not None and not all(references):
        return Unsuitable("the references of its queries are no texts")
    if module.references == "text" and any(len(texts) > 1 for texts in references):
        return Unsuitable("its queries have several right answers each, and the module takes one")
    try:
        return module.score(module.compute(answers, references, metric.arguments), metric.key)
    except FirewallRayError:
        raise
    except Exception as e:  # the module's own
        raise EvaluationError(f"{module.where}: the module fails on these answers: {type(e).__name__}: {e}") from e


def _references(dataset: Dataset, queries: LabelledQueries) -> dict[str, list[str]]:
    """By query id, the texts that are right; empty where the reference is none."""
    found = {query_id: _texts(json.loads(reference)) for query_id, reference in _rows_of(dataset, QUERY_COLUMNS, queries)}
    _check_whole(found, dataset, queries)
    return found


def _answers(dataset: Dataset, queries: LabelledQueries) -> dict[str, str]:
    """By query id, the greedy answer. A labelled query has one: where there is none there was nothing to grade."""
    found = {query_id: text for query_id, text in _rows_of(dataset, SAMPLE_COLUMNS, queries) if text is not None}
    _check_whole(found, dataset, queries)
    return found


def _texts(reference: Mapping[str, Any]) -> list[str]:
    return next((texts_of(reference[key]) for key in TEXT_REFERENCES if key in reference), [])


def _rows_of(dataset: Dataset, columns: list[str], queries: LabelledQueries) -> Iterator[tuple[Any, Any]]:
    """The two columns of the labelled test queries, row by row."""
    wanted = pa.array(queries.query_ids)
    for batch in dataset.iter_batches(columns, READ_ROWS):
        rows = batch.filter(pc.is_in(batch["query_id"], wanted))
        yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _check_whole(found: Mapping[str, Any], dataset: Dataset, queries: LabelledQueries) -> None:
    missing = [query_id for query_id in queries.query_ids if query_id not in found]
    if missing:
        raise ArtifactError(
            f"{dataset.kind}: {dataset.path} lacks {len(missing):,} of the {len(queries):,} labelled test queries, such as "
            f"{missing[0]!r}, so evaluation.metrics cannot be computed. Restore the rows that the labels were made of, or leave "
            "evaluation.metrics out."
        )
