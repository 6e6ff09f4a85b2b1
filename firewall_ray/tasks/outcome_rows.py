"""One answer of a file of outcomes: what it says, checked, with file, row and column in every message.

A row is an answer, or a query with the verdicts of all models, which unfolds into answers. Runs in the driver. Values come as CSV
has them (texts), or as JSON or Parquet has them.
"""

import math
import random
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from firewall_ray.config.queries import OutcomeColumns, OutcomesConfig
from firewall_ray.errors import TaskError
from firewall_ray.schemas import SPLITS
from firewall_ray.tasks.records import Record, read_file

MAX_NUM_SAMPLES = 10_000
# CSV's spellings; JSON and Parquet have true and false themselves.
WORDS = {"true": 1.0, "false": 0.0}
REQUIRED = ("query", "model", "correct")


class Outcome(NamedTuple):
    """verdicts: one, or n of them from a pass rate; None where the row has no verdict. query_id: the file's own, else empty."""

    where: str
    task: str
    question: str
    model: str
    verdicts: list[bool] | None
    greedy: bool
    sample_index: int | None
    query_id: str
    split: str | None


def read_outcomes(path: Path, outcomes: OutcomesConfig, wanted: Set[str]) -> Iterator[Outcome]:
    """Stream the answers. Those of other models than the `wanted` come with no more than their model's name checked.

    Raises TaskError naming file and row for a column that is not there, and for a value that is none of its kind.
    """
    columns: OutcomeColumns | None = None
    shapes: dict[tuple[str, ...], OutcomeColumns] = {}
    for record in _answers(path, outcomes.columns, wanted):
        model = record.text(outcomes.columns.model)
        if model not in wanted:
            yield Outcome(record.where, "", "", model, None, False, None, "", None)
            continue
        names_here = tuple(record.fields)
        if (present := shapes.get(names_here)) is None:  # a file has few shapes of rows, and as many rows as it likes
            present = shapes[names_here] = _present(record, outcomes.columns)
        columns = columns or present
        if present != columns:
            raise _sometimes(record, columns, present)
        question = record.text(columns.query)
        yield Outcome(
            record.where,
            record.text(columns.task) if columns.task else outcomes.task,
            question,
            model,
            _verdicts(record, columns, outcomes.threshold, f"{model}\n{question}"),
            _flag(record, columns.greedy) if columns.greedy else False,
            _whole(record, columns.sample_index, 0) if columns.sample_index else None,
            _own_id(record, columns.query_id) if columns.query_id else "",
            _split(record, columns.split) if columns.split else None,
        )


def _answers(path: Path, columns: OutcomeColumns, wanted: Set[str]) -> Iterator[Record]:
    """A record an answer, whichever form the file has."""
    if columns.verdicts is not None and path.name.lower().endswith((".csv", ".csv.gz")):
        raise TaskError(
            f"outcomes: {path}: CSV cannot hold the verdicts of all models in one column (queries.outcomes.columns.verdicts). Save "
            "the file as JSON Lines or Parquet, or with a row for each answer."
        )
    first = True
    for record in read_file("outcomes", path):
        if columns.verdicts is not None:
            yield from _unfolded(record, columns, columns.verdicts, wanted)
        else:
            if first:
                _present(record, columns)  # a column that is called otherwise is missing in the first row
            yield record
        first = False
    if first:
        raise TaskError(f"outcomes: {path} has no rows.")


def _unfolded(record: Record, columns: OutcomeColumns, name: str, wanted: Set[str]) -> Iterator[Record]:
    """The answers of one row's mapping `name`. The fields of a model's object come above the row's own."""
    if name not in record.fields:
        raise _no_column(record, "verdicts", name)
    verdicts = _mapping(record, name, record.fields[name])
    if verdicts is None:
        raise TaskError(f"{record.where}: `{name}` must map models to verdicts, there is {record.fields[name]!r:.60}.")
    for model, verdict in verdicts.items():
        where = f"{record.where}, {model!r} in `{name}`"
        if model not in wanted:  # millions of rows of forty models each: no copy of the row for these
            yield Record(where, {columns.model: model})
            continue
        inner = _mapping(record, name, verdict)
        if inner is not None and columns.correct not in inner:
            raise _no_column(Record(where, inner), "correct", columns.correct)
        yield Record(where, {**record.fields, **({columns.correct: verdict} if inner is None else inner), columns.model: model})


def _mapping(record: Record, name: str, value: Any) -> Mapping[str, Any] | None:
    """A JSON object or a struct of Parquet, or a map of it, which comes as a list of pairs. None: it is neither."""
    if isinstance(value, Mapping):
        return value
    # In JSON a pair is a list: only Parquet has tuples.
    if not isinstance(value, list) or not all(isinstance(pair, tuple) for pair in value):
        return None
    pairs = dict(value)
    if len(pairs) < len(value):  # a map may repeat a key, of which `dict` would keep the last in silence
        raise TaskError(f"{record.where}: `{name}` names a key twice: {[key for key, _ in value]!r:.200}. Keep one.")
    return pairs


def _present(record: Record, columns: OutcomeColumns) -> OutcomeColumns:
    """The columns that the row has: optional ones that the config does not name, and that are not there, are off."""
    missing = []
    for role, name in columns.model_dump(exclude_none=True).items():
        if name not in record.fields:
            if role in REQUIRED or role in columns.model_fields_set:
                raise _no_column(record, role, name)
            missing.append(role)
    return columns.model_copy(update=dict.fromkeys(missing))


def _no_column(record: Record, role: str, name: str) -> TaskError:
    return TaskError(
        f"{record.where}: there is no column {name!r}, only {sorted(record.fields)}. Say what it is called: "
        f"queries.outcomes.columns.{role}."
    )


def _sometimes(record: Record, before: OutcomeColumns, here: OutcomeColumns) -> TaskError:
    """For an optional column that some rows have and others lack: read or not, it would be wrong for one of them."""
    role = next(role for role in OutcomeColumns.model_fields if getattr(before, role) != getattr(here, role))
    name, is_here = getattr(before, role) or getattr(here, role), getattr(here, role) is not None
    found = f"has {name!r}, which rows before it lack" if is_here else f"lacks {name!r}, which rows before it have"
    return TaskError(
        f"{record.where}: {found}. Give every row of these models a value; or, where the column is not to be read at all, set "
        f"queries.outcomes.columns.{role}: null."
    )


def _own_id(record: Record, name: str) -> str:
    value = record.value(name)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise TaskError(
            f"{record.where}: `{name}` is empty. Give every row of these models an id, or set "
            "queries.outcomes.columns.query_id: null."
        )
    return str(value)


def _verdicts(record: Record, columns: OutcomeColumns, threshold: float | None, seed: str) -> list[bool] | None:
    """`correct` as one verdict, or as the n of a pass rate."""
    rate = _rate(record, columns.correct)
    if rate is None:
        return None
    if threshold is not None:
        if columns.num_samples is not None:
            raise TaskError(
                f"{record.where}: `{columns.num_samples}` makes `{columns.correct}` a pass rate, and queries.outcomes.threshold is "
                "for scores. Leave the threshold out, or set queries.outcomes.columns.num_samples: null."
            )
        return [rate >= threshold]
    if columns.num_samples is None:
        if rate not in (0, 1):
            raise TaskError(
                f"{record.where}: `{columns.correct}` is {rate:g}. A pass rate needs the number of samples behind it: name the "
                "column that has it, queries.outcomes.columns.num_samples. For a score that is no rate, say from where on it is "
                "right: queries.outcomes.threshold."
            )
        return [rate == 1]
    n = _whole(record, columns.num_samples, 1)
    num_correct = round(rate * n)
    if n > MAX_NUM_SAMPLES or abs(rate * n - num_correct) > 0.25:  # rates are rounded when they are written down
        raise TaskError(
            f"{record.where}: `{columns.correct}` is {rate:g} of {n:,} samples, which is {rate * n:g} right ones. It must be near "
            f"a whole number, of at most {MAX_NUM_SAMPLES:,} samples."
        )
    verdicts = [True] * num_correct + [False] * (n - num_correct)
    # win_rate pairs the models' samples by their index, so the right ones must not all come first in both. The seed holds the
    # model's name: with the question alone both would be shuffled alike.
    random.Random(seed).shuffle(verdicts)
    return verdicts


def _rate(record: Record, name: str) -> float | None:
    """In [0, 1]; None for a value that is not there."""
    value = record.fields.get(name)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        rate = WORDS[value.strip().lower()] if isinstance(value, str) and value.strip().lower() in WORDS else float(value)
    except (TypeError, ValueError):
        # Lies outside [0, 1] as well.
        rate = math.nan
    if not 0 <= rate <= 1:
        raise TaskError(f"{record.where}: `{name}` must be true or false, or a number from 0 to 1; there is {value!r:.60}.")
    return rate


def _flag(record: Record, name: str) -> bool:
    rate = _rate(record, name)
    if rate not in (0, 1):
        raise TaskError(f"{record.where}: `{name}` must be true or false, there is {record.fields.get(name)!r:.60}.")
    return rate == 1


def _whole(record: Record, name: str, least: int) -> int:
    value: Any = record.fields.get(name)
    try:
        # By float: pandas writes whole numbers as 3.0 once a column has an empty place.
        number = int(float(value)) if not isinstance(value, bool) and float(value) == int(float(value)) else least - 1
    except (TypeError, ValueError, OverflowError):
        number = least - 1
    if number < least:
        raise TaskError(f"{record.where}: `{name}` must be a whole number from {least}, there is {value!r:.60}.")
    return number


def _split(record: Record, name: str) -> str:
    split = record.value(name)
    if split not in SPLITS:
        raise TaskError(
            f"{record.where}: `{name}` must be one of {', '.join(SPLITS)}, there is {split!r:.60}. To draw the splits set "
            "queries.outcomes.columns.split: null."
        )
    return str(split)
