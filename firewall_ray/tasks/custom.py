"""A user's own task: a file or folder of questions with references, and a grader named in the config.

Rows in: the fields that the config names, of JSON Lines, CSV or Parquet. Rows out: `Query`, whose reference is
``{"answer": ..}``, the field as it is. Everything is said in `queries.tasks.custom.<name>`; no code is written for it.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firewall_ray.config.queries import CustomTaskOptions, SplitsConfig
from firewall_ray.errors import TaskError
from firewall_ray.schemas import SPLITS
from firewall_ray.tasks.base import Query, Task, make_query
from firewall_ray.tasks.graders import Grader, get_grader, verdict_s
from firewall_ray.tasks.records import Record, file_names, files_of, read_file
from firewall_ray.tasks.splits import draw_split


class CustomTask(Task):
    """One of `queries.tasks.custom`. The grading options are the task's own."""

    def __init__(self, name: str, options: CustomTaskOptions) -> None:
        self.name = name
        self.stop = tuple(options.stop)
        self.max_tokens = self.chat_max_tokens = options.max_tokens
        self.verdict_s = verdict_s(options.grader)

    def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
        """A folder's files in the order train, validation, test; a single file in its own order.

        Raises TaskError naming file and row for a question that is no text or comes twice, and for a reference that the grader
        cannot use.
        """
        # First: a function that cannot be imported is told before the file, which may be large, is read.
        grader = _cached_grader(options["grader"])
        splits = SplitsConfig.model_validate(options["splits"])
        # Of each question, where it stands: the message names both.
        places: dict[str, str] = {}
        for split, record in self._records(Path(options["source"]).expanduser()):
            question = record.text(options["question"])
            if question in places:
                raise TaskError(
                    f"{record.where}: the question {question[:60]!r} is also in {places[question]}. Remove one; a question in two "
                    "splits would also be a leak."
                )
            places[question] = record.where
            reference = self._reference(record, options["answer"], grader)
            if len(places) == 1:
                grader.try_out(record.value(options["answer"]), options)
            yield make_query(self.name, split or draw_split(question, splits), question, reference)

    def is_right(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """By the grader. One of the user's may raise, and `regex` may run out of time: the row then has an error."""
        return _cached_grader(options["grader"]).is_right(answer, reference["answer"], options)

    def can_read(self, answer: str, reference: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        return _cached_grader(options["grader"]).has_answer(answer, reference["answer"], options)

    def _records(self, source: Path) -> Iterator[tuple[str | None, Record]]:
        """Every row with its split, None where the hash is to draw it."""
        if source.is_file():
            yield from ((None, record) for record in read_file(self.name, source))
            return
        option = f"queries.tasks.custom.{self.name}.source"
        if not source.is_dir():
            raise TaskError(f"{option}: there is no file or folder {source}.")
        found = {split: files_of(self.name, source, [split]) for split in SPLITS}
        if not any(found.values()):
            raise TaskError(f"{option}: {source} has none of {[n for split in SPLITS for n in file_names(self.name, [split])]}.")
        for split, paths in found.items():
            if len(paths) > 1:
                names = [path.name for path in paths]
                raise TaskError(f"{option}: {source} has {names}, and which of them holds {split}? Leave one there.")
            yield from ((split, record) for path in paths for record in read_file(self.name, path))

    def _reference(self, record: Record, name: str | None, grader: Grader) -> str:
        if name is None:  # questions without references, for a judge
            return json.dumps({"answer": None})
        if name not in record.fields:
            raise TaskError(
                f"{record.where}: there is no field {name!r}, only {sorted(record.fields)}. Name the field with the reference: "
                f"queries.tasks.custom.{self.name}.answer."
            )
        answer = record.value(name)
        problem = grader.problem(answer)
        if problem is None:
            try:
                # NaN is no JSON, though Python would write it. A date, which Parquet can hold, raises TypeError.
                return json.dumps({"answer": answer}, allow_nan=False)
            except (TypeError, ValueError) as e:
                problem = f"must be a JSON value: {e}"
        raise TaskError(f"{record.where}: `{name}` {problem}; there is {answer!r:.60}.")


# Called for each completion; a user's function is looked up once a process.
@functools.cache
def _cached_grader(name: str) -> Grader:
    return get_grader(name)
