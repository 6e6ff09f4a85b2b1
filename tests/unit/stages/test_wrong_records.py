"""Files of rows as other programs leave them: read where it is clear what is meant, else refused by file and row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config

from firewall_ray.errors import TaskError
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.records import read_file

ROWS = [{"question": "Why?", "answer": "so"}, {"question": "Who?", "answer": "she"}]
JSON = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "question,answer\nWhy?,so\nWho?,she\n"


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_file("mine", path)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", JSON),
        ("q.jsonl", JSON + "\n"),
        ("q.jsonl", JSON + "  \n\t\n"),
        ("q.jsonl", "\n" + JSON.replace("\n", "\n\n")),
        ("q.jsonl", JSON.rstrip("\n")),
        ("q.jsonl", JSON.replace("\n", "\r\n") + "\r\n"),
        ("q.jsonl", "\ufeff" + JSON),
        ("q.JSONL", JSON),
        ("q.csv.jsonl", JSON),
        ("q.parquet.Jsonl", JSON),
        ("q.csv", CSV),
        ("q.csv", CSV + "\n"),
        ("q.csv", CSV + "   \n\n"),
        ("q.csv", CSV.replace("\n", "\r\n") + "\r\n"),
        ("q.csv", "\ufeff" + CSV),
        ("q.CSV", CSV),
        ("q.jsonl.csv", CSV),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", ".gz", ".GZ"])
def test_blank_lines_marks_line_ends_and_capitals_change_nothing(tmp_path: Path, name: str, text: str, suffix: str) -> None:
    data = text.encode()
    (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    assert read(tmp_path / f"{name}{suffix}") == ROWS


@pytest.mark.parametrize("name", ["q.PARQUET", "q.csv.parquet", "q.Parquet"])
def test_parquet_is_known_by_its_last_suffix(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_blank_lines_count_so_that_a_row_is_found_in_an_editor(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(JSON + "\n[1]\n")
    with pytest.raises(TaskError, match=r"q\.jsonl, row 4: must be a JSON object"):
        read(tmp_path / "q.jsonl")


def test_a_blank_value_of_the_only_column_is_a_row_where_it_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('question\nWhy?\n""\n')
    assert read(tmp_path / "q.csv") == [{"question": "Why?"}, {"question": ""}]


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("q.jsonl", b'{"question": "a"}\n{"question": "b", "question": "c"}\n', "row 2: the field 'question' comes twice"),
        ("q.csv", b"question,answer,question\na,b,c\n", "the column 'question' comes twice"),
        ("q.jsonl", b"[" * 100_000, "row 1: must be a JSON object"),
        ("q.jsonl", '{"question": "é"}'.encode("latin-1"), "it is not in UTF-8"),
        ("q.csv", "question\nWhy?\n".encode("utf-16"), "is not in UTF-8"),
        ("q.jsonl.gz", b"no gzip", "cannot be read"),
        ("q.parquet.gz", b"", "must end in one of"),
    ],
)
def test_what_would_lose_a_value_or_cannot_be_read_is_refused(tmp_path: Path, name: str, data: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError, match=rf"mine: .*{named}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ('{"question": "cut \\ud83d", "answer": "a"}', r"row 3: `question` holds half of a surrogate pair.*cut \\ud83d"),
        ('{"question": "\\ude00 cut", "answer": "a"}', r"row 3: `question` holds half"),
        ('{"question": "Where?", "answer": "\\ud83d"}', r"row 3: `answer` holds half"),
        ('{"question": "Where?", "answer": ["x", {"y": "\\ud83d"}]}', r"row 3: `answer` holds half"),
    ],
)
def test_half_a_surrogate_pair_is_named_before_earlier_queries_are_touched(tmp_path: Path, row: str, named: str) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text(JSON)
    tasks = {"tasks": {"custom": {"mine": {"source": str(source)}}}}
    config = make_config(str(tmp_path / "root"), queries=tasks)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    before = {path: path.read_bytes() for path in Path(store.queries().path).iterdir()}
    source.write_text(JSON + row + "\n")
    with pytest.raises(TaskError, match=named):
        run_prepare_queries(config, store, force=True)
    assert {path: path.read_bytes() for path in Path(store.queries().path).iterdir()} == before


def test_a_whole_surrogate_pair_and_a_nul_are_text(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text('{"question": "\\ud83d\\ude00?", "answer": "a"}\n{"question": "nul \\u0000?", "answer": "a"}\n')
    config = make_config(str(tmp_path / "root"), queries={"tasks": {"custom": {"mine": {"source": str(source)}}}})
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    assert store.queries().read()["question"].to_pylist() == ["😀?", "nul \0?"]
