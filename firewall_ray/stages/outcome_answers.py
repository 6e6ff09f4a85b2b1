"""The answers of all models to one question: from rows of a file of outcomes to verdicts of each model, as many of both.

What the file leaves open:

* A query is its text: rows of the same text and task are answers to the same query, whatever ids they carry.
* The greedy answer, where no row is marked as greedy, counts as right where at least half of the samples are.
* Labels need as many samples of both models. Where a query has 32 of one and 1 of another, the fewer are repeated to the
  least common multiple, which changes no pass rate.
* A pass rate of n samples becomes n verdicts, in an order drawn by a hash: only `win_rate` pairs samples by their order.
* An answer without a verdict (null, empty) makes its model's grade an error, which labels leave out and count.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from firewall_ray.errors import TaskError
from firewall_ray.tasks.outcome_rows import Outcome

MAX_SAMPLES = 10_000  # of a query, after repetition


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
    """One query with the answers of every model, by its key. number: of the first row that asks it."""

    number: int
    split: str | None
    answers: dict[str, Answers] = field(default_factory=dict)


def collect(rows: Iterable[tuple[int, Outcome]], names: Mapping[str, str]) -> dict[tuple[str, str], Asked]:
    """The answers of every (task, question), in the order in which the questions first come. rows: with their numbers.

    names: what the file calls the model of each key. Raises TaskError for an answer that comes twice, for greedy answers that
    disagree, and for a question in two splits.
    """
    keys = {name: key for key, name in names.items()}
    asked: dict[tuple[str, str], Asked] = {}
    for number, row in rows:
        query = asked.setdefault((row.task, row.question), Asked(number, row.split))
        if query.split != row.split:
            raise TaskError(f"{row.where}: the question is of the split {row.split!r}, and of {query.split!r} in a row before.")
        _add(query.answers.setdefault(keys[row.model], Answers()), row)
    return asked


def _add(answers: Answers, row: Outcome) -> None:
    if row.verdicts is None:
        answers.error = answers.error or f"{row.where} has no verdict"
    elif row.greedy:
        if len(row.verdicts) > 1:
            raise TaskError(f"{row.where}: a greedy answer is one verdict, but this is the pass rate of {len(row.verdicts)}.")
        if answers.greedy not in (None, row.verdicts[0]):
            raise TaskError(
                f"{row.where}: a greedy answer of {row.model!r} to this question is {row.verdicts[0]}, but {answers.greedy} in a "
                "row before. Remove one; or, where they are samples, set queries.outcomes.columns.greedy: null."
            )
        answers.greedy = row.verdicts[0]
    else:
        # Without a number, the order of the file is the order of the samples.
        key = (row.query_id, len(answers.verdicts) if row.sample_index is None else row.sample_index)
        if key in answers.verdicts:
            raise TaskError(
                f"{row.where}: sample {row.sample_index} of {row.model!r} on this question comes twice. Remove one; or, where the "
                "number means something else, set queries.outcomes.columns.sample_index: null."
            )
        answers.verdicts[key] = row.verdicts


def num_samples(question: str, asked: Asked) -> int:
    """n of a query: the least common multiple over its models."""
    sizes = {key: len(answers.samples()) for key, answers in asked.answers.items() if answers.error is None}
    # Of no sizes 1: every model's answers have an error, and no verdict is repeated.
    n = math.lcm(*sizes.values())
    if n > MAX_SAMPLES:
        raise TaskError(
            f"The question {question[:60]!r} has {sizes} answers. Both models need the same number, and to repeat them to "
            f"one would take {n:,}, more than {MAX_SAMPLES:,}. Leave answers out."
        )
    return n


def grade_of(answers: Answers, n: int) -> dict[str, Any]:
    if answers.error is not None:
        return {"correct": None, "greedy_correct": None, "error": answers.error}
    samples = answers.samples()
    greedy = 2 * sum(samples) >= len(samples) if answers.greedy is None else answers.greedy
    return {"correct": samples * (n // len(samples)), "greedy_correct": greedy, "error": None}
