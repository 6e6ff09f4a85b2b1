import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import grade, make_config, query, write, write_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall_ray.errors import ArtifactError, ArtifactMissing
from firewall_ray.schemas import LABELS
from firewall_ray.stages.label import run_labeling
from firewall_ray.store import joins as spill
from firewall_ray.store.layout import ArtifactStore


def label(root: Path, **arguments: Any) -> dict[str, Any]:
    return run_labeling(make_config(str(root)), ArtifactStore(str(root)), **arguments)


def labels(root: Path) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in ArtifactStore(str(root)).labels().require().read().to_pylist()}


def many(num_queries: int, n: int = 4, seed: int = 0) -> tuple[list[Any], list[Any], list[Any]]:
    """Queries, and grades of both models in other orders."""
    rng = random.Random(seed)
    names = [f"q{i}" for i in range(num_queries)]

    def grades() -> list[Any]:
        return [grade(i, "".join(rng.choices("01", k=n)), rng.random() < 0.5) for i in rng.sample(names, len(names))]

    return [query(name) for name in names], grades(), grades()


def expected_row(weak: Any, strong: Any) -> dict[str, float]:
    """The designs of one query in plain Python, after DESIGN section 3."""
    n = len(weak["correct"])
    pr_weak, pr_strong = sum(weak["correct"]) / n, sum(strong["correct"]) / n
    wins = sum(s <= w for w, s in zip(weak["correct"], strong["correct"], strict=True))
    return {
        "hard_label": float(strong["greedy_correct"] <= weak["greedy_correct"]),
        "win_rate": wins / n,
        "hard_block": pr_weak if pr_strong > pr_weak else 1.0,
        "hard_block_greedy": pr_weak if strong["greedy_correct"] else 1.0,
        "soft_block": 1 - (1 - pr_weak) * pr_strong,
        "weak_pass_rate": pr_weak,
        "strong_pass_rate": 1 - pr_strong,
        "pass_rate_weak": pr_weak,
        "pass_rate_strong": pr_strong,
    }


def test_labels_of_one_split_lose_nothing_of_the_others(tmp_path: Path) -> None:
    """The weak model of Table 2's pair is sampled on test alone: that the rest has no grades is no loss."""
    store = ArtifactStore(str(tmp_path))
    queries = [query("a", split="train"), query("b", split="test"), query("c", split="test")]
    write_pair(store, queries, [grade("b", "10", True)], [grade(name, "11", True) for name in "abc"])
    result = label(tmp_path, splits=("test",))
    assert labels(tmp_path).keys() == {"b"}
    assert result["left_out"] == {"weak_missing": 1}  # c, and not a
    assert label(tmp_path, splits=("test",))["action"] == "skip"
    assert label(tmp_path)["left_out"] == {"weak_missing": 2}


def test_a_row_of_labels_is_as_worked_by_hand(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    write_pair(store, [query("a", split="test")], [grade("a", "1000", False)], [grade("a", "1101", True)])
    result = label(tmp_path)
    assert (result["action"], result["labels"], result["left_out"]) == ("run", 1, {})
    assert labels(tmp_path)["a"] == {
        "query_id": "a",
        "task": "tiny_world",
        "split": "test",
        "prompt": "Question: a?\nAnswer: ",
        "num_samples": 4,
        "pass_rate_weak": 0.25,
        "pass_rate_strong": 0.75,
        "greedy_weak": False,
        "greedy_strong": True,
        "hard_label": 0.0,
        "win_rate": 0.5,  # strong wins j = 2 and 4
        "hard_block": 0.25,
        "hard_block_greedy": 0.25,
        "soft_block": 0.4375,  # 1 - 3/4 * 3/4
        "weak_pass_rate": 0.25,
        "strong_pass_rate": 0.25,
    }


@pytest.mark.parametrize("bucket_rows", [7, 64, 65_536])
def test_labels_do_not_depend_on_buckets_files_or_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int) -> None:
    """Every row against plain Python, with the same query in other places of three datasets."""
    monkeypatch.setattr(spill, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(spill, "READ_ROWS", 50)
    store, (queries, weak, strong) = ArtifactStore(str(tmp_path)), many(300)
    for part in range(3):
        write(store.queries(), queries[part::3], f"{part}.parquet")
        write(store.grades("weak"), weak[part * 100 : part * 100 + 100], f"{part}.parquet")
    write(store.grades("strong"), strong)
    assert label(tmp_path)["labels"] == 300
    found = labels(tmp_path)
    by_id = {name: {row["query_id"]: row for row in rows} for name, rows in (("weak", weak), ("strong", strong))}
    assert found.keys() == by_id["weak"].keys()
    for query_id, row in found.items():
        expected = expected_row(by_id["weak"][query_id], by_id["strong"][query_id])
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_the_same_inputs_give_the_same_file(tmp_path: Path) -> None:
    queries, weak, strong = many(200)
    files = []
    for name, order in {"one": weak, "other": weak[::-1]}.items():
        write_pair(ArtifactStore(str(tmp_path / name)), queries, order, strong)
        label(tmp_path / name)
        files.append((tmp_path / name / "labels" / "part-00000.parquet").read_bytes())
    assert files[0] == files[1]


def test_small_runs_keep_the_order_of_the_queries(tmp_path: Path) -> None:
    write_pair(ArtifactStore(str(tmp_path)), *many(50))
    label(tmp_path)
    assert list(labels(tmp_path)) == [f"q{i}" for i in range(50)]


def test_queries_without_verdicts_are_left_out_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries = [query(name) for name in "abcdefg"]
    weak = [grade(i, "11") for i in "abce"] + [grade("d", None, None, "engine died"), grade("f", None, None, "too long")]
    strong = [grade(i, "01") for i in "bcd"] + [grade(i, None, None, "timed out") for i in "ef"] + [grade("z", "11")]
    write_pair(ArtifactStore(str(tmp_path)), queries, weak, strong)
    result = label(tmp_path)
    # a: no strong grade. b, c: fine. d: weak error. e: strong error. f: both, counted once, as the weak model's. g: none of
    # weak. z has no query.
    reasons = {"weak_missing": 1, "weak_error": 2, "strong_missing": 1, "strong_error": 1, "strong_unknown": 1}
    assert result["left_out"] == reasons
    assert list(labels(tmp_path)) == ["b", "c"]
    manifest = json.loads((tmp_path / "labels" / "_MANIFEST.json").read_text())
    assert manifest["counts"] == {"labels": 2, "left_out": reasons}
    assert "2 queries with an error of the weak model" in caplog.text


def test_no_failed_generation_counts_as_a_wrong_answer(tmp_path: Path) -> None:
    """Of two queries one failed: the mean pass rate is that of the other, not half of it."""
    failed = grade("b", None, None, "engine died")
    write_pair(ArtifactStore(str(tmp_path)), [query("a"), query("b")], [grade("a", "11"), failed], [grade("a", "11"), failed])
    label(tmp_path)
    assert [row["pass_rate_weak"] for row in labels(tmp_path).values()] == [1.0]


def test_runs_with_different_n_can_be_put_together(tmp_path: Path) -> None:
    weak, strong = [grade("a", "10"), grade("b", "1000")], [grade("a", "11"), grade("b", "1110")]
    write_pair(ArtifactStore(str(tmp_path)), [query("a"), query("b")], weak, strong)
    label(tmp_path)
    found = labels(tmp_path)
    assert [(row["num_samples"], row["pass_rate_weak"], row["pass_rate_strong"]) for row in found.values()] == [
        (2, 0.5, 1.0),
        (4, 0.25, 0.75),
    ]


def test_other_types_of_the_same_family_are_read(tmp_path: Path) -> None:
    """polars and pandas write large strings, large lists and dictionaries."""
    store, (queries, weak, strong) = ArtifactStore(str(tmp_path)), many(20)
    schema = pa.schema(
        [
            ("query_id", pa.large_string()),
            ("task", pa.dictionary(pa.int32(), pa.string())),
            ("model", pa.large_string()),
            ("correct", pa.large_list(pa.bool_())),
            ("greedy_correct", pa.bool_()),
            ("error", pa.null()),
        ]
    )
    write(store.queries(), queries)
    write(store.grades("weak"), weak, schema=schema)
    write(store.grades("strong"), strong, schema=schema.set(3, pa.field("correct", pa.list_(pa.bool_(), 4))))
    assert label(tmp_path)["labels"] == 20


def test_a_limit_keeps_some_of_every_split(tmp_path: Path) -> None:
    queries, weak, strong = many(100)
    queries = [{**row, "split": "test" if i >= 90 else "train"} for i, row in enumerate(queries)]
    write_pair(ArtifactStore(str(tmp_path)), queries, weak, strong)
    result = label(tmp_path, limit=10)
    assert (result["labels"], result["left_out"]) == (10, {})
    # Of 90 + 10 everyone gets 1, and of the other 8 by (89, 9) / 98: 7.27 and 0.73, so 7 and 1.
    assert [row["split"] for row in labels(tmp_path).values()].count("test") == 2


def test_a_second_run_is_skipped_until_an_input_changes(tmp_path: Path) -> None:
    store, (queries, weak, strong) = ArtifactStore(str(tmp_path)), many(10)
    write_pair(store, queries, weak, strong)
    assert label(tmp_path)["action"] == "run"
    assert label(tmp_path) == {**label(tmp_path), "action": "skip", "labels": 10}
    assert label(tmp_path, limit=5)["labels"] == 5
    assert label(tmp_path, limit=5, force=True)["action"] == "run"
    write(store.grades("weak"), weak[:8])
    assert label(tmp_path)["labels"] == 8


@pytest.mark.parametrize(
    ("queries", "weak", "strong", "named"),
    [
        ("aa", [grade("a", "11")], [grade("a", "11")], r"queries: query_id 'a' comes more than once"),
        ("a", [grade("a", "11")] * 2, [grade("a", "11")], r"grades of the weak model: query_id 'a'"),
        ("a", [grade("a", "11")], [grade("a", "11"), grade("a", "10")], r"grades of the strong model: query_id 'a'"),
        ("a", [grade("a", "11")], [grade("a", "1111")], r"query 'a' has 2 .* weak model and 4 of the strong"),
        ("a", [grade("a", "")], [grade("a", "")], r"query 'a' has 0 .* at least 1"),
        ("a", [grade("a", None)], [grade("a", "11")], r"query 'a' has 0"),
        ("ab", [grade("a", "11"), grade("b", [True, None])], [grade("a", "11"), grade("b", "11")], r"query 'b' has a null verdict"),
        ("ab", [grade("a", "11"), grade("b", "11", None)], [grade("a", "11"), grade("b", "11")], r"query 'b' has a null verdict"),
        ("a", [grade("b", "11")], [grade("c", "11")], r"none of the queries.*without a grade of the weak model"),
        ("", [grade("b", "11")], [grade("c", "11")], r"none of the queries"),
    ],
)
def test_grades_that_cannot_be_labelled_are_named_and_nothing_is_written(
    tmp_path: Path, queries: str, weak: list[Any], strong: list[Any], named: str
) -> None:
    store = ArtifactStore(str(tmp_path))
    write_pair(store, [query(name) for name in queries], weak, strong)
    with pytest.raises(ArtifactError, match=named):
        label(tmp_path)
    assert store.labels().state() == "missing"


def test_bad_grades_leave_the_labels_of_an_earlier_run_alone(tmp_path: Path) -> None:
    store, (queries, weak, strong) = ArtifactStore(str(tmp_path)), many(10)
    write_pair(store, queries, weak, strong)
    label(tmp_path)
    before = (tmp_path / "labels" / "part-00000.parquet").read_bytes()
    write(store.grades("weak"), [*weak, weak[0]])
    with pytest.raises(ArtifactError, match="more than once"):
        label(tmp_path)
    assert store.labels().state() == "finished"
    assert (tmp_path / "labels" / "part-00000.parquet").read_bytes() == before


def test_a_split_that_does_not_exist_is_named(tmp_path: Path) -> None:
    write_pair(ArtifactStore(str(tmp_path)), [query("a", split="dev")], [grade("a", "1")], [grade("a", "1")])
    with pytest.raises(ArtifactError, match=r"'a' has the split 'dev'"):
        label(tmp_path)


def test_a_missing_dataset_names_the_job_that_makes_it(tmp_path: Path) -> None:
    write(ArtifactStore(str(tmp_path)).queries(), [query("a")])
    with pytest.raises(ArtifactMissing, match=r"grades: nothing at .*/grades/weak\. Run: python jobs/grade\.py"):
        label(tmp_path)


def test_labels_of_another_program_are_not_overwritten(tmp_path: Path) -> None:
    write_pair(ArtifactStore(str(tmp_path)), *many(5))
    (tmp_path / "labels").mkdir()
    pq.write_table(LABELS.empty_table(), tmp_path / "labels" / "theirs.parquet")
    with pytest.raises(ArtifactError, match="--force"):
        label(tmp_path)
    assert label(tmp_path, force=True)["labels"] == 5
    assert not (tmp_path / "labels" / "theirs.parquet").exists()


# Blocked for artefacts -----------------------------------------------------------------------------------------------


def blocked_runs() -> tuple[list[Any], list[Any], list[Any]]:
    """Queries that neither model solves but for c and d; after each the strong model's four samples."""
    short = {"w": "wrong", "n": "no_answer", "t": "truncated", "r": "right"}
    # a: 3 of 4 artefacts. b: 2 of 4, no more than half. c: solved by weak. d: by strong. e: as a, of test. f: as a, of validation.
    # g: of before there were verdicts.
    strong = {"a": "ttnw", "b": "tnww", "c": "tttt", "d": "tttr", "e": "tttt", "f": "nnnn", "g": None}
    splits = {"e": "test", "f": "validation"}
    queries = [query(name, split=splits.get(name, "train")) for name in strong]
    weak = [grade(name, "0100" if name == "c" else "0000", verdicts=["truncated"] * 4) for name in strong]
    of_strong = [
        grade(name, "0001" if name == "d" else "0000", verdicts=None if letters is None else [short[letter] for letter in letters])
        for name, letters in strong.items()
    ]
    return queries, weak, of_strong


def test_queries_blocked_for_artefacts_are_left_out_where_asked_for_and_never_of_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(ArtifactStore(str(tmp_path)), *blocked_runs())
    config = make_config(str(tmp_path), labels={"artefacts": "leave_out"})
    result = run_labeling(config, ArtifactStore(str(tmp_path)))
    assert list(labels(tmp_path)) == ["b", "c", "d", "e", "g"]
    assert result["left_out"] == {"strong_artefacts": 2}
    assert "2 queries that nobody solves and on which most samples of the strong model have no answer" in caplog.text
    assert "1 grades" in caplog.text
    assert "have no verdicts" in caplog.text


def test_they_are_kept_by_default_and_labels_of_before_the_choice_are_those_that_keep_them(tmp_path: Path) -> None:
    write_pair(ArtifactStore(str(tmp_path)), *blocked_runs())
    assert label(tmp_path)["labels"] == 7
    assert labels(tmp_path)["a"]["soft_block"] == 1
    assert "artefacts" not in json.loads((tmp_path / "labels" / "_MANIFEST.json").read_text())["settings"]
    leave_out = make_config(str(tmp_path), labels={"artefacts": "leave_out"})
    assert run_labeling(leave_out, ArtifactStore(str(tmp_path)))["labels"] == 5
    assert run_labeling(leave_out, ArtifactStore(str(tmp_path)))["action"] == "skip"
    assert label(tmp_path)["labels"] == 7


def test_a_verdict_that_there_is_not_is_named(tmp_path: Path) -> None:
    write_pair(ArtifactStore(str(tmp_path)), [query("a")], [grade("a", "0")], [grade("a", "0", verdicts=["refused"])])
    with pytest.raises(ArtifactError, match="a verdict is 'refused'; there are right, wrong, no_answer, truncated"):
        run_labeling(make_config(str(tmp_path), labels={"artefacts": "leave_out"}), ArtifactStore(str(tmp_path)))


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, max_size=40), st.integers(1, 6))
def test_partitioning_loses_no_row_and_splits_no_id(ids: list[str], count: int) -> None:
    batch = pa.record_batch({"query_id": pa.array(ids, pa.string()), "row": pa.array(range(len(ids)), pa.int64())})
    parts = list(spill._partition(batch, count))
    rows = [(number, row["query_id"], row["row"]) for number, part in parts for row in part.to_pylist()]
    assert sorted((i, r) for _, i, r in rows) == sorted(zip(ids, range(len(ids)), strict=True))
    again = {
        row["query_id"]: number for number, part in spill._partition(batch.slice(len(ids) // 2), count) for row in part.to_pylist()
    }
    assert all(again[query_id] == number for number, query_id, _ in rows if query_id in again)


def test_local_rows_outlive_their_file_and_every_change_of_the_dataset(tmp_path: Path) -> None:
    dataset = ArtifactStore(str(tmp_path)).queries()
    rows = [query(f"q{number}") for number in range(40_000)]  # several batches
    write(dataset, rows)
    local = spill.LocalRows(dataset.iter_batches(batch_rows=spill.READ_ROWS), dataset.schema)
    dataset.begin({})
    assert dataset.files() == []
    assert len(local) == 40_000
    assert local.read().to_pylist() == rows
    with ThreadPoolExecutor(4) as threads:  # models are sampled side by side
        columns = list(threads.map(lambda _: pa.chunked_array(local.column("query_id")).to_pylist(), range(8)))
    assert columns == [[row["query_id"] for row in rows]] * 8
