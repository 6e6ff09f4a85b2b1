"""The answers of all models to one question: from rows of a file of outcomes to verdicts of each model, as many of both.

What the file leaves open:

* A query is its text: rows of the same text and task are answers to the same query, whatever ids they carry.
* The greedy answer, where no row is marked as greedy, counts as right where at least half of the samples are.
* Labels need as many samples of both models. Where a query has 32 of one and 1 of another, the fewer are repeated to the
  least common multiple, which changes no pass rate.
* Several models may stand for one, whose samples are then theirs, each model with equal weight. A query that lacks an answer of
  one of them makes the grade an error: the pass rate of the others is that of another family.
* A pass rate of n samples becomes n verdicts, in an order drawn by a hash: only `win_rate` pairs samples by their order.
* An answer without a verdict (null, empty) makes its model's grade an error, which labels leave out and count.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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

    def greedy_verdict(self) -> bool:
        return _at_least_half(self.samples()) if self.greedy is None else self.greedy


@dataclass
class Asked:
    """One query with the answers of every model, by the file's name of it. number: of the first row that asks it."""

    number: int
    split: str | None
    answers: dict[str, Answers] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdicts:
    """Of all models that stand for one key on one query. samples: each of these models' own; empty with an error."""

    samples: list[list[bool]]
    greedy: bool
    error: str | None = None

    @property
    def num_samples(self) -> int:
        """The fewest in which every model has the same weight."""
        return len(self.samples) * math.lcm(*(len(each) for each in self.samples))

    def repeated(self, n: int) -> list[bool]:
        """n of them, a multiple of num_samples."""
        return [verdict for each in self.samples for verdict in each * (n // (len(self.samples) * len(each)))]


def collect(rows: Iterable[tuple[int, Outcome]]) -> dict[tuple[str, str], Asked]:
    """The answers of every (task, question), in the order in which the questions first come. rows: with their numbers.

    Raises TaskError for an answer that comes twice, for greedy answers that disagree, and for a question in two splits.
    """
    asked: dict[tuple[str, str], Asked] = {}
    for number, row in rows:
        query = asked.setdefault((row.task, row.question), Asked(number, row.split))
        if query.split != row.split:
            raise TaskError(f"{row.where}: the question is of the split {row.split!r}, and of {query.split!r} in a row before.")
        _add(query.answers.setdefault(row.model, Answers()), row)
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


def verdicts_of(answers: Mapping[str, Answers], family: Sequence[str]) -> Verdicts | None:
    """family: the models that stand for one key. None where the query has no answer of any."""
    found = [answers[name] for name in family if name in answers]
    if not found:
        return None
    errors = [each.error for each in found if each.error is not None]
    errors += [f"there is no answer of {name!r}" for name in family if name not in answers]
    if errors:
        return Verdicts([], False, errors[0])
    return Verdicts([each.samples() for each in found], _at_least_half([each.greedy_verdict() for each in found]))


def grades_of(question: str, verdicts: Mapping[str, Verdicts]) -> list[dict[str, Any]]:
    """A grade a key, with as many samples of each: the least common multiple. Raises TaskError where it is too large."""
    sizes = {key: each.num_samples for key, each in verdicts.items() if each.error is None}
    # Of no sizes 1: every model's answers have an error, and no verdict is repeated.
    n = math.lcm(*sizes.values())
    if n > MAX_SAMPLES:
        raise TaskError(
            f"The question {question[:60]!r} has {sizes} answers. Both models need the same number, and to repeat them to "
            f"one would take {n:,}, more than {MAX_SAMPLES:,}. Leave answers out."
        )
    return [{"model": key, **_grade(each, n)} for key, each in verdicts.items()]


def _grade(verdicts: Verdicts, n: int) -> dict[str, Any]:
    if verdicts.error is not None:
        return {"correct": None, "greedy_correct": None, "error": verdicts.error}
    return {"correct": verdicts.repeated(n), "greedy_correct": verdicts.greedy, "error": None}


def _at_least_half(verdicts: Sequence[bool]) -> bool:
    return 2 * sum(verdicts) >= len(verdicts)
