"""A benchmark's own records: from local files of JSON Lines, CSV or Parquet, or by id through the `datasets` library.

Every record knows where it came from, so that a message about it can name the file and the row.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from firewall_ray.errors import TaskError

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
PARQUET_ROWS = 1_024  # in memory at once; a row may hold a long response
MAX_FIELD_CHARS = 2**31 - 1  # of CSV; Python's own limit of 131,072 is below what a model can write


class Record(NamedTuple):
    """One row of a benchmark. `where` names its file (or data set) and its row, counted from 1."""

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """The field as a text that is not blank. Raises TaskError naming file, row and field."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            found = f"{value!r:.60}" if name in self.fields else f"only {sorted(self.fields)}"
            raise TaskError(f"{self.where}: `{name}` must be a text, there is {found}.")
        return str(self.value(name))

    def value(self, name: str) -> Any:
        """The field as it is; None where it is not there. Raises TaskError where a text in it cannot be stored.

        JSON can write half a surrogate pair (\\ud83d without its other half), which no file in UTF-8 can hold.
        """
        value = self.fields.get(name)
        broken = next((text for text in _texts_in(value) if not _is_utf8(text)), None)
        if broken is not None:
            raise TaskError(
                f"{self.where}: `{name}` holds half of a surrogate pair, which is no character: {broken!a:.60}. It was cut off in "
                "the middle of an emoji, or such; mend or remove the row."
            )
        return value


def read_records(task: str, source: str, split: str, subset: str = "main", other_names: Sequence[str] = ()) -> Iterator[Record]:
    """Stream one split. A `source` that is a folder here is read from disk, any other is an id of the `datasets` library.

    The folder holds one file `<split>` or `<task>_<split>`, or for a test split `<task>` alone, in upper or lower case, with a
    suffix of `SUFFIXES`. subset: the data set's configuration on the hub; other_names: what a folder may call the split instead.
    Raises TaskError when there is no such file, when it is cut off, or when a row is not an object, naming the row.
    """
    if Path(source).expanduser().is_dir():
        yield from read_file(task, _find_file(task, Path(source).expanduser(), (split, *other_names)))
    else:
        yield from _read_hub(task, source, split, subset)


def _find_file(task: str, folder: Path, splits: Sequence[str]) -> Path:
    names = file_names(task, splits)
    found = files_of(task, folder, splits)
    if len(found) == 1:
        return found[0]
    what = f"has {[path.name for path in found]}, and which of them holds" if found else f"has none of {names} for"
    raise TaskError(f"queries.tasks.{task}.source: {folder} {what} the split {splits[0]}. Leave exactly one there.")


def file_names(task: str, splits: Sequence[str]) -> list[str]:
    """What the file of a split may be called, in lower case."""
    stems = [stem for split in splits for stem in (split, f"{task}_{split}")]
    stems += [task] if "test" in splits else []  # a benchmark without training is one file
    return [f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]


def files_of(task: str, folder: Path, splits: Sequence[str]) -> list[Path]:
    """The files in `folder` that a split's rows may be in, sorted."""
    names = file_names(task, splits)
    return [path for path in sorted(folder.iterdir()) if path.name.lower() in names and path.is_file()]


def read_file(task: str, path: Path) -> Iterator[Record]:
    """Stream the rows of one file, by its suffix; CSV values are texts. Raises TaskError as `read_records` does."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise TaskError(f"{task}: {path} must end in one of {', '.join(SUFFIXES)}.")
    if name.endswith(".parquet"):
        rows = _parquet_rows(path)
    else:
        rows = _csv_rows(path) if name.removesuffix(".gz").endswith(".csv") else _json_rows(path)
    try:
        for number, fields in rows:
            where = f"{task}: {path}, row {number}"
            if not isinstance(fields, Mapping):
                raise TaskError(f"{where}: must be a JSON object with named fields, there is {fields!r:.60}.")
            yield Record(where, fields)
    except UnicodeDecodeError as e:
        raise TaskError(f"{task}: {path} cannot be read: it is not in UTF-8 ({e.reason}). Save it as UTF-8.") from e
    except (OSError, EOFError, csv.Error, pa.ArrowException, _TwiceError) as e:
        raise TaskError(f"{task}: {path} cannot be read: {e}. Restore the file.") from e


# Rows with their numbers. What is no object of named fields is given on as it is, and the caller refuses it with its number.


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    file = pq.ParquetFile(path)
    _check_once(file.schema_arrow.names, "column")
    rows = (row for batch in file.iter_batches(batch_size=PARQUET_ROWS) for row in batch.to_pylist())
    yield from enumerate(rows, start=1)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """One value a line, which is its number. Blank lines are nobody's: editors and `echo` leave them at the end."""
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                # The hook sees names that come twice, at any depth.
                fields = json.loads(line, object_pairs_hook=_object)
            except _TwiceError as e:
                raise _TwiceError(f"row {number}: {e}") from None
            # Given on as the line, which the caller refuses with its number: cut off, no JSON, or nested too deeply for Python.
            except (ValueError, RecursionError):
                fields = line
            yield number, fields


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """One value a row, by the names in the first; the row below it is 1, and blank lines count but are none."""
    # A setting of the whole process; the module has none for one reader.
    csv.field_size_limit(MAX_FIELD_CHARS)
    with _open_text(path) as lines:
        rows = csv.reader(lines)
        names = next(rows, [])
        _check_once(names, "column")
        for number, row in enumerate(rows, start=1):
            # A line of blanks alone is a row of one field; where there is one column, it may be meant.
            if not row or (len(row) == 1 < len(names) and not row[0].strip()):
                continue
            yield number, dict(zip(names, row, strict=True)) if len(row) == len(names) else row


class _TwiceError(Exception):
    """A name that comes twice: `dict` would keep the last one in silence."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([name for name, _ in pairs], "field")
    return dict(pairs)


def _check_once(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the {what} {twice!r} comes twice; keep one")


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        # Names of nested fields too: all of it is stored as JSON.
        for pair in value.items():
            for part in pair:
                yield from _texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_in(part)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_text(path: Path) -> TextIO:
    """utf-8-sig: what Excel saves as UTF-8 begins with a byte order mark. newline: CSV fields may hold line ends."""
    return (
        gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        if path.suffix.lower() == ".gz"
        else path.open(encoding="utf-8-sig", newline="")
    )


def _read_hub(task: str, source: str, split: str, subset: str) -> Iterator[Record]:
    import datasets  # Slow to import, and needless for local files.

    option = f"queries.tasks.{task}.source"
    try:
        rows = datasets.load_dataset(source, subset, split=split)
    except Exception as e:  # The library raises its own, the hub client's, and the network's errors.
        raise TaskError(
            f"{option}: {source!r} is no folder here, and the `datasets` library cannot load its split {split}: {e}. "
            f"Give a folder that holds {split}.jsonl, or an id that this machine can download."
        ) from e
    for number, fields in enumerate(rows, start=1):
        yield Record(f"{task}: {source}, split {split}, row {number}", fields)
