"""The judges of a grading job: for each task with `grader: judge` an actor on the driver's node, which the grading tasks ask.

One actor, since what bounds it is the server: all calls in flight are counted in one place, and so are all that are paid for. It
only waits on the network, and asks for all answers of a batch of rows side by side.

Rows in: samples with their queries; for pairs also the strong model's greedy answers. Out: verdicts for `grade_batch`, and counts.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from firewall_ray.config.api_key import read_api_key
from firewall_ray.config.judge import JudgeConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import FirewallRayError, SystemFailure, TaskError
from firewall_ray.evaluation.agreement import agreement
from firewall_ray.evaluation.table import number
from firewall_ray.judge.judge import Judge, Judged, ToJudge
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.records import Record, read_file
from firewall_ray.tasks.thinking import answer_of

ANCHOR_COLUMNS = ["query_id", "greedy_text"]
ANCHORS = pa.schema([pa.field("query_id", pa.string(), nullable=False), pa.field("anchor", pa.string())])
AT_ONCE = 256  # labelled answers that the judge is asked about in one go
CLOSE_S = 600.0  # calls in flight are waited for; each ends by its own timeout

logger = logging.getLogger("firewall_ray")


class JudgeActor(Judge):
    """A judge whose warnings reach the driver, once it is told of the stage's progress counter."""

    def __init__(self, section: str, config: JudgeConfig, cache: Dataset, secret: str | None, *, forget_unreadable: bool) -> None:
        super().__init__(section, config, cache, secret, self._say, forget_unreadable=forget_unreadable)
        self._progress: Any = None

    async def report_to(self, progress: Any) -> None:
        self._progress = progress

    def _say(self, line: str) -> None:
        logger.warning("%s", line)
        if self._progress is not None:
            self._progress.say.remote(line, logging.WARNING)


@dataclass
class Judges:
    """By task. Goes to the workers with the handles of the actors; `counts` are filled in when the judges are closed."""

    actors: Mapping[str, Any] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def report_to(self, progress: Any) -> None:
        for actor in self.actors.values():
            actor.report_to.remote(progress)

    def verdicts(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, dict[str, Judged]]:
        """By query_id and answer (a completion without its thoughts), of those rows (sample, query) whose task has a judge.

        Runs in a worker. A query of pairs has the `anchor`, see `anchors_of`. Raises what ends the job.
        """
        found: dict[str, dict[str, Judged]] = {}
        for task, actor in self.actors.items():
            of_task = [(sample, query) for sample, query in rows if sample["task"] == task]
            asked = [
                ToJudge(
                    query["question"],
                    json.loads(query["reference"]).get("answer"),
                    [answer_of(text) for text in (*sample["texts"], sample["greedy_text"])],
                    None if query.get("anchor") is None else answer_of(query["anchor"]),
                )
                for sample, query in of_task
            ]
            if asked:
                answers = _answer(actor.judge.remote(asked), task)
                found |= {sample["query_id"]: each for (sample, _), each in zip(of_task, answers, strict=True)}
        return found


def judges_of(config: RunConfig, tasks: set[str]) -> dict[str, JudgeConfig]:
    """The judges of those of `tasks` that have one."""
    custom = config.queries.custom_tasks()
    return {name: own.judge for name, own in sorted(custom.items()) if name in tasks and own.judge is not None}


def judge_settings(configs: Mapping[str, JudgeConfig], config: RunConfig, store: ArtifactStore) -> dict[str, Any]:
    """What decides the verdicts, for the fingerprint of grades/; empty without judges. Raises ArtifactMissing, TaskError."""
    if not configs:
        return {}
    return {
        "judges": {
            name: {
                **judge.content(),
                # The verdicts stay, what is said of them does not. They come from the cache then.
                "labelled": None if judge.labelled is None else _hash_of(name, judge.labelled),
                "anchors": store.samples(config.pair.strong).require(ANCHOR_COLUMNS).identity()
                if judge.mode == "pairwise"
                else None,
            }
            for name, judge in configs.items()
        }
    }


def anchors_of(configs: Mapping[str, JudgeConfig], config: RunConfig, store: ArtifactStore) -> LocalRows | None:
    """The strong model's greedy answers (ANCHORS), where a judge compares with them."""
    if not any(judge.mode == "pairwise" for judge in configs.values()):
        return None
    samples = store.samples(config.pair.strong).require(ANCHOR_COLUMNS)
    batches = samples.iter_batches(ANCHOR_COLUMNS)
    return LocalRows((pa.RecordBatch.from_arrays(batch.columns, schema=ANCHORS) for batch in batches), ANCHORS)


@contextmanager
def open_judges(configs: Mapping[str, JudgeConfig], store: ArtifactStore, *, retry_errors: bool, seed: int = 0) -> Iterator[Judges]:
    """The judges, ready; each has judged its labelled answers. When the body ends, what they said is written.

    Raises ConfigError for a key that is not there, TaskError for labelled answers that cannot be used.
    """
    where = {name: f"queries.tasks.custom.{name}.judge" for name in configs}
    # All that can be wrong here before anything is asked.
    secrets = {name: read_api_key(judge.api_key_env, f"{where[name]}.api_key_env") for name, judge in configs.items()}
    labelled = {name: read_labelled(name, judge) for name, judge in configs.items()}
    judges = Judges()
    if not configs:
        yield judges
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(JudgeActor)
    cache = store.judge_cache()
    judges.actors = {
        name: actor.remote(where[name], judge, cache, secrets[name], forget_unreadable=retry_errors)
        for name, judge in configs.items()
    }
    try:
        found = {name: _agreement(name, judges.actors[name], rows, seed) for name, rows in labelled.items() if rows}
        yield judges
    finally:
        try:
            for name, handle in judges.actors.items():
                judges.counts[name] = _answer(handle.close.remote(), name, timeout_s=CLOSE_S)
                logger.info("grade: the judge of %s: %s", name, _words(judges.counts[name]))
        finally:
            for handle in judges.actors.values():
                ray.kill(handle)
    for name, of_judge in found.items():
        judges.counts[name]["agreement"] = of_judge


def read_labelled(task: str, judge: JudgeConfig) -> list[tuple[ToJudge, bool]]:
    """Answers with what a person said of them. Raises TaskError naming file, row and field."""
    if judge.labelled is None:
        return []
    rows = []
    for record in read_file(f"queries.tasks.custom.{task}.judge.labelled", Path(judge.labelled).expanduser()):
        anchor = record.text("anchor") if judge.mode == "pairwise" else None
        # CSV has no null: an empty field is none.
        reference = record.value("reference")
        reference = None if reference == "" else reference
        rows.append((ToJudge(record.text("question"), reference, [record.text("answer")], anchor), _is_correct(record)))
    if not rows:
        raise TaskError(f"queries.tasks.custom.{task}.judge.labelled: {judge.labelled} has no rows.")
    return rows


def _is_correct(record: Record) -> bool:
    said = str(record.value("correct")).strip().lower()
    if said not in ("true", "false", "1", "0"):
        raise TaskError(f"{record.where}: `correct` must be true or false, there is {record.value('correct')!r:.60}.")
    return said in ("true", "1")


def _agreement(task: str, actor: Any, rows: Sequence[tuple[ToJudge, bool]], seed: int) -> dict[str, Any]:
    """How far the judge agrees with the people. An answer on which it gave no verdict is counted, and left out."""
    pairs: list[tuple[bool, bool]] = []  # (judge, person) says that it is right
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        found = _answer(actor.judge.remote([asked for asked, _ in some]), task)
        judged = [of_row[asked.answers[0]] for of_row, (asked, _) in zip(found, some, strict=True)]
        pairs += [(one.verdict == "right", is_correct) for one, (_, is_correct) in zip(judged, some, strict=True) if one.verdict]
    result = agreement([judge for judge, _ in pairs], [person for _, person in pairs], seed=seed)
    logger.info(
        "grade: the judge of %s on %s labelled answers: accuracy %s, kappa %s",
        *(task, f"{len(pairs):,}"),
        *("{} [{}, {}]".format(*(number(result[name][end]) for end in ("value", "low", "high"))) for name in ("accuracy", "kappa")),
    )
    return {**result, "num_not_judged": len(rows) - len(pairs)}


def _answer(call: Any, task: str, timeout_s: float | None = None) -> Any:
    """What the actor returns, and the error that it raises, as it is."""
    try:
        return ray.get(call, timeout=timeout_s)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, FirewallRayError):
            # From None: the actor's traceback says nothing more.
            raise e.cause from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
        raise SystemFailure(f"grade: the judge of {task} is gone or does not end: {e}. Run the same command again.") from e


def _words(counts: Mapping[str, int]) -> str:
    return f"{counts['calls']:,} calls, {counts['cache_hits']:,} verdicts from the cache, {counts['unreadable']:,} not readable"


def _hash_of(task: str, labelled: str) -> str:
    try:
        return hashlib.sha256(Path(labelled).expanduser().read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise TaskError(f"queries.tasks.custom.{task}.judge.labelled: {labelled} cannot be read: {e}.") from e
