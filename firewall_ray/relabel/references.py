"""drawn/ -> relabel/<round>/queries/: the drawn queries that can be graded, each with its task, reference and split.

A query can be graded where the user says what is right, or where a task of the config asks the same. Runs in the driver.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import TaskError
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.schemas import PROMPT_TEMPLATE, QUERIES, SPLITS
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import fingerprint
from firewall_ray.tasks import get_task, known_tasks
from firewall_ray.tasks.base import prompt_id
from firewall_ray.tasks.graders import get_grader
from firewall_ray.tasks.records import Record, read_file
from firewall_ray.tasks.splits import draw_split

logger = logging.getLogger("firewall_ray")


class Reference(NamedTuple):
    """What grades a query. reference: JSON, the task's own form. split: the task's; None where it has none for the query."""

    task: str
    reference: str
    split: str | None = None


def run_references(
    config: RunConfig, round_store: RoundStore, *, references: str | None = None, force: bool = False
) -> StageResult:
    """Write the round's queries/. references: a file, see `read_references`; it is above what tasks say.

    Given more references later, the same round samples only the queries that are new. Raises TaskError where no drawn query has
    a reference.
    """
    drawn = round_store.drawn().require().read().to_pylist()
    wanted = {row["query_id"] for row in drawn}
    given = {} if references is None else read_references(references, config)
    of_tasks = references_of_tasks(config, wanted)
    # Whoever says what is right, a benchmark's test question stays one.
    splits = {key: reference.split for key, reference in of_tasks.items()}
    known = of_tasks | {key: reference._replace(split=splits.get(key)) for key, reference in given.items()}
    rows = [_query(row, known[row["query_id"]], config) for row in drawn if row["query_id"] in known]
    if not rows:
        raise TaskError(
            f"None of the {len(drawn):,} drawn queries has a reference, so no answer to them can be graded. Their texts are in "
            f"{round_store.drawn().path}. Say what is right for them: --references FILE, a .jsonl, .csv or .parquet of query_id "
            "(or prompt, or question), reference and task; or have their questions in a task of the config."
        )
    unused = len(given.keys() - wanted)
    if unused:
        logger.warning("relabel: %s references are of queries that this round has not drawn", f"{unused:,}")
    queries = round_store.queries()
    # The rows themselves: the same references from another file, or in another order, are nothing new.
    settings = {"rows": fingerprint({"rows": rows})}
    output = Output.plan("references", queries, settings, force=force)

    def write() -> dict[str, int]:
        output.begin()
        with queries.writer() as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=QUERIES))
        of_split = Counter(row["split"] for row in rows)
        return {"queries": len(rows), "not_gradable": len(drawn) - len(rows), **{split: of_split[split] for split in SPLITS}}

    return make(config, output, write)


def references_of_tasks(config: RunConfig, wanted: set[str]) -> dict[str, Reference]:
    """By the id of a prompt, of those in `wanted`: what the tasks of the config say. The first task that has it counts.

    A question keeps the split that its task gave it: one of a benchmark's test split must not be trained on.
    """
    found: dict[str, Reference] = {}
    if config.queries.tasks is None:
        return found
    known = known_tasks(config.queries.custom_tasks())
    for name, options in config.queries.tasks.options().items():
        for query in get_task(name, known).load(options):
            # By the prompt, as the log names queries. Only wanted ones are kept: a benchmark may have a hundred thousand.
            if (key := prompt_id(query.prompt)) in wanted:
                found.setdefault(key, Reference(query.task, query.reference, query.split))
    return found


def read_references(path: str, config: RunConfig) -> dict[str, Reference]:
    """The user's own, by the id of a prompt. A row has `query_id`, `prompt` or `question`; `reference`; and `task`, whose grader
    and stop strings apply; without that column the config must have a single task.

    reference: an object in the task's own form, or the answer alone. Raises TaskError naming file, row and field.
    """
    found: dict[str, Reference] = {}
    for record in read_file("references", Path(path).expanduser()):
        key, reference = _key(record), _reference(record, config)
        # The same row twice does no harm.
        if found.setdefault(key, reference) != reference:
            raise TaskError(f"{record.where}: this query has another reference in a row before. Remove one.")
    if not found:
        raise TaskError(f"--references {path} has no rows.")
    return found


def _key(record: Record) -> str:
    if "query_id" in record.fields:
        return record.text("query_id")
    if "prompt" in record.fields:
        return prompt_id(record.text("prompt"))
    return prompt_id(PROMPT_TEMPLATE.format(question=record.text("question")))


def _reference(record: Record, config: RunConfig) -> Reference:
    task = _task(record, config)
    value = record.value("reference")
    # A column of text may hold an object as JSON. What parses as anything else stays the text it is: graders compare "18", not 18.
    parsed = _parsed(value) if isinstance(value, str) else value
    custom = config.queries.custom_tasks().get(task)
    if value == "":  # CSV has no null
        value = None
    # A judge alone grades without.
    if value is None and (custom is None or custom.grader != "judge"):
        raise TaskError(f"{record.where}: `reference` is missing; there is only {sorted(record.fields)}.")
    reference = parsed if isinstance(parsed, dict) else {"answer": value}
    problem = None if custom is None else get_grader(custom.grader).problem(reference.get("answer"))
    if problem is not None:
        raise TaskError(f"{record.where}: `reference` {problem}; there is {value!r:.60}.")
    try:
        return Reference(task, json.dumps(reference, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise TaskError(f"{record.where}: `reference` must be a JSON value: {e}") from e


def _task(record: Record, config: RunConfig) -> str:
    if record.fields.get("task"):
        name = record.text("task")
    else:
        tasks = [] if config.queries.tasks is None else list(config.queries.tasks.options())
        if len(tasks) != 1:
            raise TaskError(
                f"{record.where}: `task` is missing, and the config has {len(tasks)} tasks ({', '.join(tasks)}). Name one."
            )
        (name,) = tasks
    try:
        return get_task(name, known_tasks(config.queries.custom_tasks())).name
    except TaskError as e:
        raise TaskError(f"{record.where}: {e}") from e


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _query(drawn: dict[str, Any], reference: Reference, config: RunConfig) -> dict[str, Any]:
    # Hashed, so that a query which comes again in a later round lies in the same split.
    split = reference.split or draw_split(drawn["prompt"], config.relabel.splits)
    return {**drawn, "task": reference.task, "split": split, "reference": reference.reference}
