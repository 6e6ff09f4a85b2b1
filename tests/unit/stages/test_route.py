from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError
from firewall_ray.stages.route import check_budget, check_out, prompts_of, read_queries, with_query_ids

CARD = SimpleNamespace(prompt_template="Question: {question}\nAnswer: ")


def test_questions_get_the_routers_template_and_prompts_are_taken_as_they_are() -> None:
    assert prompts_of(pa.table({"question": ["Why {so}?"]}), CARD, "q") == ["Question: Why {so}?\nAnswer: "]
    assert prompts_of(pa.table({"question": ["Why?"], "prompt": ["P"]}), CARD, "q") == ["P"]


def test_other_columns_alone_are_refused_with_what_is_there() -> None:
    with pytest.raises(ArtifactError, match=r"needs a `prompt` column.*\['text'\]"):
        prompts_of(pa.table({"text": ["x"]}), CARD, "q")


def test_a_null_prompt_names_its_row() -> None:
    with pytest.raises(ArtifactError, match=r"'prompt': null in row 2"):
        prompts_of(pa.table({"prompt": ["a", "b", None]}), CARD, "q")


def test_a_column_of_numbers_is_no_column_of_prompts() -> None:
    with pytest.raises(ArtifactError, match=r"'prompt' is list<item: int64>, must be string"):
        prompts_of(pa.table({"prompt": [[1], [2]]}), CARD, "q")


def test_rows_without_ids_get_unique_ones_and_repeats_stay() -> None:
    table = with_query_ids(pa.table({"prompt": ["a", "b", "a", "a"]}), ["a", "b", "a", "a"], "q")
    ids = table["query_id"].to_pylist()
    assert len(set(ids)) == 4
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]


def test_given_ids_that_repeat_name_the_rows() -> None:
    with pytest.raises(ArtifactError, match=r"query_id 'x' is in rows \[0, 2\]"):
        with_query_ids(pa.table({"query_id": ["x", "y", "x"]}), ["a", "b", "c"], "q")


@pytest.mark.parametrize(
    ("fraction", "number", "message"),
    [
        (None, None, "one of --strong-fraction"),
        (0.5, 3, "one of --strong-fraction"),
        (1.01, None, r"must lie in \[0, 1\]"),
        (float("nan"), None, r"must lie in \[0, 1\]"),
        (None, -1, "must not be negative"),
    ],
)
def test_bad_budgets_are_refused(fraction: float | None, number: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_budget(fraction, number)


def test_a_missing_file_an_empty_one_and_one_that_is_not_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no such file"):
        read_queries(str(tmp_path / "nowhere.parquet"))
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(ArtifactError, match="no rows"):
        read_queries(str(tmp_path / "empty.parquet"))
    (tmp_path / "text.parquet").write_text("prompt\nwhy?\n")
    with pytest.raises(ArtifactError, match="cannot be read as Parquet"):
        read_queries(str(tmp_path / "text.parquet"))


def test_a_table_that_was_routed_before_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "route": ["weak"]}), tmp_path / "q.parquet")
    with pytest.raises(ArtifactError, match=r"already has the columns \['route'\]"):
        read_queries(str(tmp_path / "q.parquet"))


# What would be found out after everything is scored ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "question"])
@pytest.mark.parametrize("values", [[1, 2], [True, False], [date(2026, 1, 2)] * 2, [1.5, 2.5], [b"a", b"b"]])
def test_a_column_that_casts_to_text_is_no_column_of_prompts(name: str, values: list[object]) -> None:
    with pytest.raises(ArtifactError, match=rf"column '{name}' is .*, must be string"):
        prompts_of(pa.table({name: values}), CARD, "q")


def test_a_column_of_nulls_names_its_first_row() -> None:
    with pytest.raises(ArtifactError, match=r"'prompt': null in row 0"):
        prompts_of(pa.table({"prompt": pa.nulls(2)}), CARD, "q")


def test_ids_that_are_numbers_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"column 'query_id' is int64, must be string"):
        with_query_ids(pa.table({"query_id": [1, 2]}), ["a", "a"], "q")


def write_rows(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_a_column_that_the_first_file_lacks_is_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", prompt=["x"])
    write_rows(tmp_path / "b.parquet", prompt=["y"], mine=[7])
    assert read_queries(str(tmp_path)).to_pylist() == [{"prompt": "x", "mine": None}, {"prompt": "y", "mine": 7}]
    write_rows(tmp_path / "c.parquet", other=["z"])
    with pytest.raises(ArtifactError, match=r"'prompt': null in row 2"):
        prompts_of(read_queries(str(tmp_path)), CARD, "q")


def test_a_column_of_two_types_is_refused_with_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", prompt=["x"], mine=[7])
    write_rows(tmp_path / "b.parquet", prompt=["y"], mine=["seven"])
    with pytest.raises(ArtifactError, match=r"b\.parquet has a column of another type.*mine"):
        read_queries(str(tmp_path))


def test_what_folders_name_is_a_column(tmp_path: Path) -> None:
    write_rows(tmp_path / "q" / "split=test" / "a.parquet", prompt=["x"])
    write_rows(tmp_path / "q" / "split=train" / "a.parquet", prompt=["y"])
    assert read_queries(str(tmp_path / "q")).to_pylist() == [{"prompt": "x", "split": "test"}, {"prompt": "y", "split": "train"}]
    assert read_queries(str(tmp_path / "q" / "split=test" / "a.parquet")).to_pylist() == [{"prompt": "x"}]
    write_rows(tmp_path / "q" / "split=train" / "a.parquet", prompt=["y"], split=["other"])
    with pytest.raises(ArtifactError, match=r"folders are called split=\.\.\., and files have that column too"):
        read_queries(str(tmp_path / "q"))


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("folder", "is a folder. Name a file in it"),
        ("new/", "is a folder"),
        ("", "is empty"),
        ("s3:/bucket/routed.parquet", "is no URI"),
        ("queries/a.parquet", "lies in --queries"),
        ("queries/new/routed.parquet", "lies in --queries"),
        ("folder/../queries/routed.parquet", "lies in --queries"),
        ("queries/a.parquet/routed.parquet", "is a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(out: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "queries" / "a.parquet", prompt=["x"])
    with pytest.raises(ConfigError, match=f"--out.*{named}"):
        check_out(out, "queries")
    check_out("elsewhere/routed.parquet", "queries")
