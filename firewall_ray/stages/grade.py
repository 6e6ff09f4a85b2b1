"""samples/<model>/ and queries/ -> grades/<model>/: is each completion right? One Ray Data job a model.

The driver checks ids and tasks, shares the references and writes what comes back; tasks on the cluster's CPUs read and grade
blocks of about equal work (`grading_blocks.py`). Finished rows lie in parts, which a killed job goes on with. A row that cannot
be graded becomes a row with `error`, never a dead job and never a missing row. Tasks with a judge ask it from there (`judging.py`).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from firewall_ray.cluster.progress import watch
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError, FirewallRayError, SystemFailure
from firewall_ray.judge.judge import Judged
from firewall_ray.schemas import GRADES, SAMPLES
from firewall_ray.stages.grading_blocks import SampleRows, look_over, plan_blocks, read_block
from firewall_ray.stages.judging import Judges, anchors_of, judge_settings, judges_of, open_judges
from firewall_ray.stages.prepare_queries import read_queries, tasks_of
from firewall_ray.stages.shared_queries import QUERY_COLUMNS, share, shared_rows
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.store.dataset import Action, Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import PartsWriter, check_whole, compact, missing_rows, recover
from firewall_ray.tasks import TASKS, Task, get_task, known_tasks

SAMPLE_COLUMNS = ["query_id", "task", "texts", "greedy_text", "error"]
NO_JUDGES = Judges()
MAX_ERROR_CHARS = 500  # a grader's exception may quote the whole completion

Options = Mapping[str, Mapping[str, Any]]  # task -> the config's section grading.<task>

logger = logging.getLogger("firewall_ray")


def run_grading(
    config: RunConfig,
    store: ArtifactStore,
    *,
    models: Sequence[str] | None = None,
    limit: int | None = None,
    force: bool = False,
    retry_errors: bool = False,
) -> list[StageResult]:
    """Grade the samples of `models`, or of the pair as far as they are there. One result a model.

    With `limit` only those of the first queries. A killed job goes on where it stopped; samples that were added since, or made
    again because of an error, are graded and the others keep their verdicts. retry_errors: also grades with an error of their own.

    Raises ConfigError for an unknown model key, TaskError for a task that does not exist, ArtifactMissing, and ArtifactError
    for query_ids that come twice.
    """
    keys = list(dict.fromkeys(models or _sampled_of_pair(config, store)))
    for key in keys:
        if key not in config.models:
            raise ConfigError(f"--model {key}: models has only {sorted(config.models)}")
    inputs = {key: store.samples(key).require(SAMPLE_COLUMNS) for key in keys}
    queries = read_queries(store, limit)
    tasks = known_tasks(config.queries.custom_tasks())
    options = _options(config, queries, tasks)
    judge_configs = judges_of(config, tasks_of(queries))
    of_judges = judge_settings(judge_configs, config, store)
    results = []
    for key, samples in inputs.items():
        grades = store.grades(key)
        settings = {
            "inputs": [store.queries().identity(), samples.identity()],
            "samples_origin": samples.origin(),
            "grading": options,
            "limit": limit,
            **of_judges,
        }
        output = Output("grade", grades, settings, _plan(grades, settings, force=force, retry_errors=retry_errors), {"model": key})

        # Defaults hold this turn's values: a closure would see those of the loop's last.
        def write(samples: Dataset = samples, output: Output = output, key: str = key) -> dict[str, Any]:
            rows = look_over(samples, queries, tasks, only_known=limit is not None)
            with open_judges(judge_configs, store, retry_errors=retry_errors, seed=config.evaluation.seed) as judges:
                anchors = anchors_of(judge_configs, config, store)
                _begin(output)
                _grade_rows(samples, rows, output.dataset, key, queries, options, tasks, config.grading.batch_size, judges, anchors)
            compact(output.dataset)
            check_whole(output.dataset, len(rows.ids), rows.ids.column("query_id"))
            return {**_count(output.dataset, rows.num_without), **({"judge": judges.counts} if judges.counts else {})}

        result = make(config, output, write)
        if result["errors"]:
            logger.warning("grade: %s of %s rows of %s have an error", f"{result['errors']:,}", f"{result['rows']:,}", key)
        results.append(result)
    return results


def _plan(grades: Dataset, settings: Mapping[str, Any], *, force: bool, retry_errors: bool) -> Action:
    """Verdicts stay true while queries, rules and samples are the same; where samples were only added to, the old ones do."""

    def reusable(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        (queries, _), (queries_now, _) = recorded["inputs"], wanted["inputs"]
        return {**recorded, "inputs": queries} == {**wanted, "inputs": queries_now}

    action = grades.plan(settings, force=force, reusable=reusable)
    if action != "skip":
        return action
    has_new_samples = (grades.settings() or {})["inputs"] != settings["inputs"]
    return "resume" if has_new_samples or (retry_errors and grades.manifest()["counts"]["errors"]) else "skip"


def _begin(output: Output) -> None:
    if output.action == "resume":
        grades = output.dataset
        recover(grades)
        if (grades.settings() or {})["inputs"] != output.settings["inputs"]:
            # Errors among the parts of a killed run stand for done (see `missing_ids`), but their samples may have been made again.
            compact(grades)
    output.begin()


def _sampled_of_pair(config: RunConfig, store: ArtifactStore) -> list[str]:
    """The pair's models that have samples; both where none has any, so that the message says what to run."""
    pair = [config.pair.weak, config.pair.strong]
    there = [key for key in pair if store.samples(key).state() != "missing"]
    for key in set(pair) - set(there or pair):
        logger.warning("grade: no samples of %s at %s; grading the other model", key, store.samples(key).path)
    return there or pair


def grade_batch(
    batch: pa.Table,
    queries: pa.Table,
    model: str,
    options: Options,
    tasks: Mapping[str, Task] = TASKS,
    judges: Judges = NO_JUDGES,
) -> pa.Table:
    """Rows of `schemas.SAMPLES` (SAMPLE_COLUMNS are enough) -> rows of `schemas.GRADES`, one for one. Runs in a worker.

    queries: query_id, task and reference of every query. tasks: by name, see `known_tasks`.
    """
    # A sample whose query is not there gets a row of nulls, for `_mismatch` to name.
    query_rows = queries.take(pc.index_in(batch["query_id"], queries["query_id"]))
    pairs = list(zip(batch.to_pylist(), query_rows.to_pylist(), strict=True))
    errors = [sample["error"] or _mismatch(sample, query) for sample, query in pairs]
    # Of all rows at once, since a call takes a second and many can be in flight.
    judged = judges.verdicts([pair for pair, error in zip(pairs, errors, strict=True) if error is None])
    rows = []
    for (sample, query), error in zip(pairs, errors, strict=True):
        row = {"query_id": sample["query_id"], "task": sample["task"], "model": model}
        if error is None:
            try:
                row |= _grade(get_task(sample["task"], tasks), sample, query["reference"], options, judged.get(sample["query_id"]))
            except SystemFailure:  # No row's fault: where one program cannot be run, none can.
                raise
            except Exception as e:  # A grader's bug, or a reference that lacks a field: this row's loss, not the job's.
                error = f"the grader of {sample['task']} failed: {type(e).__name__}: {e}"[:MAX_ERROR_CHARS]
        rows.append({**row, "error": error})
    return pa.Table.from_pylist(rows, schema=GRADES)


def _grade(
    task: Task, sample: Mapping[str, Any], reference_json: str, options: Options, judged: Mapping[str, Judged] | None = None
) -> dict[str, Any]:
    reference, task_options = json.loads(reference_json), options[task.name]
    if judged is not None:
        task_options = {**task_options, "judged": judged}
    # A sure model answers a query in the same words many times over: each text is graded once.
    texts = dict.fromkeys([*sample["texts"], sample["greedy_text"]])
    verdicts = {text: task.grade(text, reference, task_options) for text in texts}
    return {"correct": [verdicts[text] for text in sample["texts"]], "greedy_correct": verdicts[sample["greedy_text"]]}


def _mismatch(sample: Mapping[str, Any], query: Mapping[str, Any]) -> str | None:
    """Why this sample cannot be graded, or None."""
    if query["query_id"] is None:
        return "its query is not in queries/"
    if query["task"] != sample["task"]:
        return f"its task is {sample['task']!r} in samples/ and {query['task']!r} in queries/"
    if not sample["texts"] or any(text is None for text in sample["texts"]):
        return "`texts` is empty or holds a null, and no error says why"
    if sample["greedy_text"] is None:
        return "`greedy_text` is null, and no error says why"
    return None


def _grade_rows(
    samples: Dataset,
    rows: SampleRows,
    grades: Dataset,
    model: str,
    queries: LocalRows,
    options: Options,
    tasks: Mapping[str, Task],
    batch_rows: int,
    judges: Judges,
    anchors: LocalRows | None,
) -> None:
    """Grades of `rows` as far as `grades` lacks them or has them with an error, into its parts."""
    is_left = np.zeros(len(rows.costs), dtype=bool)
    # In files of an unfinished dataset lies what was whole before it was begun again; errors of this run lie in parts and stay.
    for batch in missing_rows(grades, rows.ids, retry=True):
        is_left[batch["row"]] = True
    num_left = int(is_left.sum())
    if not num_left:
        return
    blocks = plan_blocks(samples, np.where(is_left, rows.costs, np.float32(0)), ray.cluster_resources().get("CPU", 1))
    schema = pa.schema([SAMPLES.field(name) for name in SAMPLE_COLUMNS])
    source = replace(samples, _known={})  # the footers stay here, each task gets this
    # A judge reads the question; other graders do without, and so does the memory of each node.
    shared = share(queries, [*QUERY_COLUMNS, "question"] if judges.actors else QUERY_COLUMNS, anchors)

    # `progress` is bound below, before Ray Data pickles this for its tasks.
    def grade_block(block: pa.Table) -> Iterator[pa.Table]:
        for table in read_block(source, schema, block, batch_rows):
            graded = grade_batch(table, shared_rows(shared, table["query_id"]), model, options, tasks, judges)
            progress.add.remote(model, {"rows": len(graded), "errors": len(graded) - graded["error"].null_count})
            yield graded

    done = {model: len(rows.ids) - num_left}
    with _worker_errors(f"samples: {samples.path}"), watch("grade", {model: len(rows.ids)}, done) as progress:
        judges.report_to(progress)
        # One task a block. Its rows come here, since they are small, and lie in storage with the next block or two that come.
        graded = ray.data.from_arrow(blocks).map_batches(grade_block, batch_size=None, batch_format="pyarrow")
        graded.context.enable_progress_bars = False  # `watch` shows progress
        writer = PartsWriter(grades)
        try:
            for table in graded.iter_batches(batch_size=None, batch_format="pyarrow"):
                writer.add(table.cast(GRADES))
        except SystemExit:  # which is how a lost lease comes (`store/leases.py`): another job may be writing here by now
            writer.abandon()
            raise
        finally:
            # Also after an error, for what is done; after `abandon` it does nothing.
            writer.flush()


def _options(config: RunConfig, queries: LocalRows, tasks: Mapping[str, Task]) -> Options:
    sections = config.grading.model_dump(exclude={"batch_size"})
    sections |= {name: own.model_dump(include={"grader", "sandbox"}) for name, own in config.queries.custom_tasks().items()}
    return {get_task(name, tasks).name: sections.get(name, {}) for name in sorted(tasks_of(queries))}


def _count(grades: Dataset, without_samples: int) -> dict[str, int]:
    rows = errors = 0
    for batch in grades.iter_batches(["error"]):
        rows += batch.num_rows
        errors += batch.num_rows - batch["error"].null_count
    return {"rows": rows, "errors": errors, "queries_without_samples": without_samples}


@contextmanager
def _worker_errors(where: str) -> Iterator[None]:
    """What went wrong in a worker, as the error that the driver would raise for it."""
    try:
        yield
    except ray.exceptions.RayError as e:
        cause = getattr(e, "cause", None)
        if isinstance(cause, FirewallRayError):
            raise cause from e
        if isinstance(cause, pa.ArrowException | OSError):
            raise ArtifactError(f"{where} cannot be read to its end: {cause}. Restore the file, or sample again.") from e
        raise SystemFailure(f"grade: a worker failed on {where}: {e}") from e


STAGE = Stage("grade", run_grading, reads=("queries", "samples"), writes=("grades",), needs_ray=True, retries=True)
