"""A batch of samples and their queries -> grades, row for row. Runs in workers.

A completion has one of `schemas.VERDICTS`, which its task gives it; right is what `correct` says of it. A row that cannot be graded
gets an `error`, which says why.
"""

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.errors import SystemFailure, TaskError
from firewall_ray.judge.judge import Judged
from firewall_ray.schemas import GRADES
from firewall_ray.stages.judging import Judges
from firewall_ray.tasks import TASKS, Task, get_task

NO_JUDGES = Judges()
MAX_ERROR_CHARS = 500  # a grader's exception may quote the whole completion

Options = Mapping[str, Mapping[str, Any]]  # task -> the config's section grading.<task>


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
            except (SystemFailure, TaskError):  # No row's fault: where one program cannot be run, or no grader be had, none can.
                raise
            except Exception as e:  # A grader's bug, or a reference that lacks a field: this row's loss, not the job's.
                error = f"the grader of {sample['task']} failed: {type(e).__name__}: {e}"[:MAX_ERROR_CHARS]
        rows.append({**row, "error": error})
    return pa.Table.from_pylist(rows, schema=GRADES)


def _grade(
    task: Task, sample: Mapping[str, Any], reference_json: str, options: Options, judged: Mapping[str, Judged] | None = None
) -> dict[str, Any]:
    reference, task_options, texts = json.loads(reference_json), options[task.name], sample["texts"]
    if judged is not None:
        task_options = {**task_options, "judged": judged}
    # How each sample ended: (text, "length") where it was cut off, else (text, None). Others' samples may have fewer reasons.
    ended = [(text, _cut(reason)) for text, reason in zip_longest(texts, (sample["finish_reasons"] or [])[: len(texts)])]
    greedy_text, greedy_reason = sample["greedy_text"], sample["greedy_finish_reason"]
    # Where nobody says how the greedy answer ended, a sample with the same text does.
    greedy = (greedy_text, dict(ended).get(greedy_text) if greedy_reason is None else _cut(greedy_reason))
    # A sure model answers a query in the same words many times over: each text is graded once.
    verdicts = {end: task.verdict(*end, reference, task_options) for end in dict.fromkeys([*ended, greedy])}
    of_samples = [verdicts[end] for end in ended]
    return {
        "correct": [verdict == "right" for verdict in of_samples],
        "greedy_correct": verdicts[greedy] == "right",
        "verdicts": of_samples,
        "greedy_verdict": verdicts[greedy],
    }


def _cut(finish_reason: str | None) -> str | None:
    """`length`, or None: how else it ended (stop, eos, ...) makes no other verdict, and must not make the same text another."""
    return "length" if finish_reason == "length" else None


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
