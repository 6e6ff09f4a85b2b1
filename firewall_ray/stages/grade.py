"""samples/<model>/ and queries/ -> grades/<model>/: is each completion right? One Ray Data job a model.

The driver checks ids and tasks, shares the references and writes what comes back; tasks on the cluster's CPUs read blocks of about
equal work (`grading_blocks.py`) and grade them (`grading_rows.py`). Finished rows lie in parts, which a killed job goes on with. A
row that cannot be graded becomes a row with `error`, never a dead job and never a missing row. Tasks with a judge ask
it from there (`judging.py`).
"""

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
from firewall_ray.evaluation.verdicts import count_verdicts
from firewall_ray.schemas import GRADES, SAMPLES, VERDICTS
from firewall_ray.stages.grading_blocks import SampleRows, look_over, plan_blocks, read_block
from firewall_ray.stages.grading_rows import Options, grade_batch
from firewall_ray.stages.judging import Judges, anchors_of, judge_settings, judges_of, open_judges
from firewall_ray.stages.prepare_queries import read_queries, tasks_of
from firewall_ray.stages.shared_queries import QUERY_COLUMNS, share, shared_rows
from firewall_ray.stages.stage import Output, Stage, StageResult, make
from firewall_ray.store.dataset import Action, Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import PartsWriter, check_whole, compact, missing_rows, recover
from firewall_ray.tasks import Task, get_task, known_tasks

SAMPLE_COLUMNS = ["query_id", "task", "texts", "finish_reasons", "greedy_text", "greedy_finish_reason", "error"]

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
    again because of an error or a limit that cut them off, are graded and the others keep their verdicts (see `final_ids`).
    retry_errors: also grades with an error of their own.

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
            # Rows in the parts of a killed run stand for final (see `missing_ids`), but their samples may have been made again.
            compact(grades)
    output.begin()


def _sampled_of_pair(config: RunConfig, store: ArtifactStore) -> list[str]:
    """The pair's models that have samples; both where none has any, so that the message says what to run."""
    pair = [config.pair.weak, config.pair.strong]
    there = [key for key in pair if store.samples(key).state() != "missing"]
    for key in set(pair) - set(there or pair):
        logger.warning("grade: no samples of %s at %s; grading the other model", key, store.samples(key).path)
    return there or pair


def final_ids(grades: Dataset) -> Iterator[pa.Array]:
    """The ids whose grades stay when samples were added or made again.

    Not those with an error or with a sample that was cut off: these samples are made again, with more room. Neither those without
    verdicts, which an older version graded: they may have been cut off as well. So it is whenever a job goes on, also where only
    errors are wanted: after a kill nobody knows which of these rows were graded before their samples changed.
    """
    for batch in grades.iter_batches(["query_id", "verdicts", "greedy_verdict", "error"]):
        num_cut = count_verdicts(batch["verdicts"])[:, VERDICTS.index("truncated")]
        is_cut = pc.or_(pa.array(num_cut > 0), pc.equal(batch["greedy_verdict"], "truncated"))
        # A null, of a row that has no verdict, filters it out.
        yield batch["query_id"].filter(pc.and_kleene(batch["error"].is_null(), pc.invert(is_cut)))


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
    """Grades of `rows` as far as `grades` lacks them or they are not final, into its parts."""
    is_left = np.zeros(len(rows.costs), dtype=bool)
    # In files of an unfinished dataset lies what was whole before it was begun again; what this run made lies in parts and stays.
    for batch in missing_rows(grades, rows.ids, retry=True, final=final_ids):
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
    sections |= {
        name: own.model_dump(include={"grader", "sandbox", "evaluate"}) for name, own in config.queries.custom_tasks().items()
    }
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
