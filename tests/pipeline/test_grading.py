"""Grading on a real local Ray."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config, query, sample, write
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import ArtifactError, ArtifactMissing, ConfigError, TaskError
from firewall_ray.schemas import GRADES, SAMPLES
from firewall_ray.stages import grade as grading
from firewall_ray.stages.grade import grade_batch, run_grading
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.shared_queries import rows_near
from firewall_ray.store import joins as spill
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import PartsWriter, parts_of
from firewall_ray.tasks.tiny_world import TinyWorld

ray_needed = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
OPTIONS = {"tiny_world": {}, "gsm8k": {"rule": "official"}}


def grade_rows(samples: list[Any], queries: list[Any], options: Any = OPTIONS) -> list[dict[str, Any]]:
    """`grade_batch` without Ray."""
    known = pa.Table.from_pylist(queries).select(["query_id", "task", "reference"])
    graded = grade_batch(pa.Table.from_pylist(samples, schema=SAMPLES), known, "weak", options)
    assert graded.schema == GRADES
    return graded.to_pylist()


def grades(root: Path, model: str = "weak") -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in ArtifactStore(str(root)).grades(model).require().read().to_pylist()}


def grade_all(root: Path, models: Any = ("weak",), **arguments: Any) -> list[dict[str, Any]]:
    sections = arguments.pop("sections", {})
    return run_grading(make_config(str(root), **sections), ArtifactStore(str(root)), models=models, **arguments)


# The queries of a batch ------------------------------------------------------------------------------------------------


IDS = st.text(max_size=4)  # of any characters: Python's order of them is not Arrow's


@given(st.lists(IDS, min_size=1, unique=True), st.lists(IDS, max_size=20))
def test_the_binary_search_finds_every_query_of_a_batch_and_no_more_rows_than_the_batch_has(
    known: list[str], ids: list[str]
) -> None:
    queries = pa.table({"query_id": known, "number": range(len(known))}).sort_by("query_id").combine_chunks()
    near = rows_near(queries, pa.chunked_array([ids[:3], ids[3:]], pa.string())).to_pylist()
    assert {row["query_id"] for row in near} >= set(known) & set(ids)
    assert all(known[row["number"]] == row["query_id"] for row in near)
    assert len(near) <= len(set(ids))


# One batch, as a worker grades it --------------------------------------------------------------------------------------


def test_every_sample_and_the_greedy_answer_get_a_verdict() -> None:
    (row,) = grade_rows([sample("a", ["yes", "no", " yes "], "nope")], [query("a")])
    assert row == {
        "query_id": "a",
        "task": "tiny_world",
        "model": "weak",
        "error": None,
        "correct": [True, False, True],
        "greedy_correct": False,
        "verdicts": ["right", "wrong", "right"],
        "greedy_verdict": "wrong",
    }


def test_a_failed_generation_stays_a_row_with_its_error() -> None:
    (row,) = grade_rows([sample("a", None, None, "engine died")], [query("a")])
    assert (row["correct"], row["greedy_correct"], row["error"]) == (None, None, "engine died")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (sample("z", ["yes"]), "not in queries/"),
        (sample("a", ["yes"], task="gsm8k"), "'gsm8k' in samples/ and 'tiny_world' in queries/"),
        (sample("a", []), "`texts` is empty"),
        (sample("a", None), "`texts` is empty"),
        (sample("a", ["yes", None]), "holds a null"),
        (sample("a", ["yes"], None), "`greedy_text` is null"),
        (sample("bad", ["yes"]), "grader of tiny_world failed: KeyError: 'answer'"),
    ],
)
def test_what_cannot_be_graded_is_a_row_with_its_reason(row: dict[str, Any], named: str) -> None:
    queries = [query("a"), query("bad", reference="{}")]
    fine, wrong = grade_rows([sample("a", ["yes"]), row], queries)
    assert fine["error"] is None
    assert named in wrong["error"]
    assert (wrong["correct"], wrong["greedy_correct"]) == (None, None)


def test_the_rule_of_the_config_decides() -> None:
    queries = [query("a", task="gsm8k", reference='{"answer": "18"}')]
    samples = [sample("a", ["#### 18", "so 18", "#### 18."], "18", task="gsm8k")]
    verdicts = {
        rule: grade_rows(samples, queries, {"gsm8k": {"rule": rule}})[0]["correct"] for rule in ("official", "strict", "flexible")
    }
    assert verdicts == {"official": [True, False, False], "strict": [True, False, True], "flexible": [True, True, True]}


# The job -------------------------------------------------------------------------------------------------------------


class TestJob:
    pytestmark = ray_needed

    @pytest.mark.parametrize("bucket_rows", [100, spill.BUCKET_ROWS])
    def test_every_row_is_graded_by_its_own_reference_across_files_blocks_and_buckets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int
    ) -> None:
        monkeypatch.setattr(spill, "BUCKET_ROWS", bucket_rows)
        store, rng = ArtifactStore(str(tmp_path)), random.Random(0)
        right = {f"q{i}": rng.choice(["yes", "no"]) for i in range(700)}
        texts = {name: [rng.choice(["yes", "no"]) for _ in range(5)] for name in right}
        write(store.queries(), [query(name, reference=json.dumps({"answer": answer})) for name, answer in right.items()])
        for part in range(3):
            rows = [sample(name, texts[name][:4], texts[name][4]) for name in list(right)[part::3]]
            write(store.samples("weak"), rows, f"{part}.parquet")
        (result,) = grade_all(tmp_path, sections={"grading": {"batch_size": 50}})
        assert (result["action"], result["rows"], result["errors"], result["queries_without_samples"]) == ("run", 700, 0, 0)
        found = grades(tmp_path)
        assert len(found) == store.grades("weak").num_rows() == 700
        for name, row in found.items():
            assert [*row["correct"], row["greedy_correct"]] == [text == right[name] for text in texts[name]]
            assert row["model"] == "weak"

    def test_the_model_of_the_pair_that_has_samples_is_graded_without_the_other(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query("a")])
        write(store.samples("strong"), [sample("a", ["yes", "no"], "yes")])
        (result,) = grade_all(tmp_path, models=None)
        assert (result["model"], result["rows"]) == ("strong", 1)
        assert "no samples of weak" in caplog.text

    def test_bad_rows_are_counted_and_stop_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query("a"), query("b"), query("c"), query("d", reference="{}")])
        rows = [sample("a", ["yes"]), sample("b", None, None, "engine died"), sample("z", ["yes"]), sample("d", ["yes"])]
        write(store.samples("weak"), rows)
        (result,) = grade_all(tmp_path)
        assert (result["rows"], result["errors"], result["queries_without_samples"]) == (4, 3, 1)
        assert {name for name, row in grades(tmp_path).items() if row["error"]} == {"b", "z", "d"}
        assert "3 of 4 rows of weak have an error" in caplog.text

    def test_a_second_run_is_skipped_until_the_rule_or_an_input_changes(self, tmp_path: Path) -> None:
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query("a", task="gsm8k", reference='{"answer": "18"}')])
        for model in ("weak", "strong"):
            write(store.samples(model), [sample("a", ["it is 18"], task="gsm8k")])
        assert [result["action"] for result in grade_all(tmp_path, None)] == ["run", "run"]
        assert grades(tmp_path)["a"]["correct"] == [True]
        assert [result["action"] for result in grade_all(tmp_path, None)] == ["skip", "skip"]
        (again,) = grade_all(tmp_path, sections={"grading": {"gsm8k": {"rule": "official"}}})
        assert again["action"] == "run"
        assert grades(tmp_path)["a"]["correct"] == [False]
        write(store.samples("strong"), [sample("a", ["it is 18", "or 7"], task="gsm8k")])
        assert [result["action"] for result in grade_all(tmp_path, ["strong"])] == ["run"]
        assert grades(tmp_path, "strong")["a"]["correct"] == [True, False]

    def test_what_has_a_verdict_keeps_it_through_a_kill_and_through_samples_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed after the first rows that came, then graded to the end, then with an error's sample made again and one added."""

        class Recording(TinyWorld):
            verdict_s = 1.0  # a block a row

            def grade(self, completion: str, reference: Any, options: Any) -> bool:
                with (tmp_path / "graded.txt").open("a") as file:
                    file.write(f"{completion}\n")
                return not completion.startswith("c")

        def graded() -> list[str]:
            texts = (tmp_path / "graded.txt").read_text().split()
            (tmp_path / "graded.txt").unlink()
            return sorted(texts)

        def finish_samples(rows: list[Any], *, keep_files: bool) -> None:
            samples.begin({}, keep_files=keep_files)
            write(samples, rows, "ours.parquet")
            samples.finish({}, {})

        def killed(self: PartsWriter, rows: pa.Table) -> None:
            add(self, rows)
            raise KeyboardInterrupt

        monkeypatch.setattr(grading, "known_tasks", lambda custom: {"tiny_world": Recording()})
        store, samples = ArtifactStore(str(tmp_path)), ArtifactStore(str(tmp_path)).samples("weak")
        write(store.queries(), [query(name) for name in "abcdef"])
        fine = [sample(name, [name], name) for name in "abcd"]
        finish_samples([*fine, sample("e", None, None, "HTTP 500")], keep_files=False)

        add = PartsWriter.add
        with monkeypatch.context() as patched:
            patched.setattr(PartsWriter, "add", killed)
            with pytest.raises(KeyboardInterrupt):
                grade_all(tmp_path)
        before = graded()
        kept = {row["query_id"] for row in parts_of(store.grades("weak")).read().to_pylist()}
        assert len(kept) == 1
        (result,) = grade_all(tmp_path)
        assert (result["action"], result["rows"], result["errors"], result["queries_without_samples"]) == ("resume", 5, 1, 1)
        assert graded() == sorted({*"abcd"} - kept), f"killed after {before}, with {kept}"

        assert [r["action"] for r in grade_all(tmp_path)] == ["skip"]
        finish_samples([*fine, sample("e", ["e"], "e"), sample("f", ["f"], "f")], keep_files=True)
        (result,) = grade_all(tmp_path)
        assert (result["action"], result["rows"], result["errors"]) == ("resume", 6, 0)
        assert graded() == ["e", "f"]
        assert {name: row["correct"] for name, row in grades(tmp_path).items()} == {n: [n != "c"] for n in "abcdef"}
        finish_samples(fine, keep_files=False)
        (result,) = grade_all(tmp_path)
        assert (result["action"], result["rows"], graded()) == ("run", 4, ["a", "b", "c", "d"])

    def test_what_was_cut_off_is_graded_again_when_its_samples_are_made_again_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Samples of an unchanged origin; killed after the second grading has taken over the new samples' identity."""

        class Recording(TinyWorld):
            def grade(self, completion: str, reference: Any, options: Any) -> bool:
                with (tmp_path / "graded.txt").open("a") as file:
                    file.write(f"{completion}\n")
                return completion.endswith("yes")

        def graded() -> list[str]:
            texts = (tmp_path / "graded.txt").read_text().split()
            (tmp_path / "graded.txt").unlink()
            return sorted(texts)

        def finish_samples(rows: list[Any], *, keep_files: bool) -> None:
            samples.begin({}, keep_files=keep_files)
            write(samples, rows, "ours.parquet")
            samples.finish({}, {})

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(grading, "known_tasks", lambda custom: {"tiny_world": Recording()})
        store, samples = ArtifactStore(str(tmp_path)), ArtifactStore(str(tmp_path)).samples("weak")
        write(store.queries(), [query(name) for name in "abcd"])
        others = [sample("a", ["a-no"], "a-no"), sample("c", ["c-yes"], "c-yes", finish_reasons=["length"])]
        cut = [
            sample("b", ["b-er", "b-yes"], "b-yes", finish_reasons=["length", "stop"]),
            sample("d", ["d-yes"], "d-er", greedy_finish_reason="length"),
        ]
        finish_samples([*others, *cut], keep_files=False)
        grade_all(tmp_path)
        found = grades(tmp_path)
        assert [found[name]["verdicts"] for name in "abcd"] == [["wrong"], ["truncated", "right"], ["right"], ["right"]]
        assert found["d"]["greedy_verdict"] == "truncated"
        assert graded() == ["a-no", "b-er", "b-yes", "c-yes", "d-er", "d-yes"]

        finish_samples([*others, sample("b", ["b-er-yes", "b-no"], "b-yes"), sample("d", ["d-yes"], "d-no")], keep_files=True)
        with monkeypatch.context() as patched:
            patched.setattr(grading, "_grade_rows", killed)
            with pytest.raises(KeyboardInterrupt):
                grade_all(tmp_path)
        (result,) = grade_all(tmp_path)
        assert (result["action"], result["rows"]) == ("resume", 4)
        assert graded() == ["b-er-yes", "b-no", "b-yes", "d-no", "d-yes"]
        found = grades(tmp_path)
        assert [found[name]["correct"] for name in "abcd"] == [[False], [True, False], [True], [True]]
        assert found["d"]["greedy_verdict"] == "wrong"
        assert [r["action"] for r in grade_all(tmp_path)] == ["skip"]

    def test_grades_of_before_there_were_verdicts_are_kept_until_their_samples_change(self, tmp_path: Path) -> None:
        store, samples = ArtifactStore(str(tmp_path)), ArtifactStore(str(tmp_path)).samples("weak")
        write(store.queries(), [query("a"), query("b")])
        samples.begin({})
        write(samples, [sample("a", ["no"], "no")])
        samples.finish({}, {})
        grade_all(tmp_path)
        old = store.grades("weak")
        (file,) = old.files()
        pq.write_table(pq.read_table(file).drop_columns(["verdicts", "greedy_verdict"]), file)
        assert [r["action"] for r in grade_all(tmp_path)] == ["skip"]
        assert (grades(tmp_path)["a"]["correct"], grades(tmp_path)["a"]["verdicts"]) == ([False], None)
        samples.begin({}, keep_files=True)
        write(samples, [sample("b", ["yes"])], "more.parquet")
        samples.finish({}, {})
        (result,) = grade_all(tmp_path)
        assert (result["action"], result["rows"]) == ("resume", 2)
        assert {name: row["verdicts"] for name, row in grades(tmp_path).items()} == {"a": ["wrong"], "b": ["right"]}

    def test_retry_errors_grades_rows_with_an_error_again_and_no_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Grumpy(TinyWorld):
            def grade(self, completion: str, reference: Any, options: Any) -> bool:
                if completion == "b" or broken:
                    raise ValueError("not today")
                return True

        monkeypatch.setattr(grading, "known_tasks", lambda custom: {"tiny_world": Grumpy()})
        broken = False
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query(name) for name in "ab"])
        write(store.samples("weak"), [sample(name, [name], name) for name in "ab"])
        assert [r["errors"] for r in grade_all(tmp_path)] == [1]
        broken = True  # would now fail every row that is graded
        assert [r["action"] for r in grade_all(tmp_path)] == ["skip"]
        assert [(r["action"], r["errors"]) for r in grade_all(tmp_path, retry_errors=True)] == [("resume", 1)]
        assert grades(tmp_path)["a"]["correct"] == [True]

    def test_a_limit_grades_only_the_first_queries(self, tmp_path: Path) -> None:
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query(name) for name in "abcd"])
        write(store.samples("weak"), [sample(name, ["yes"]) for name in "dcbaz"])
        (result,) = grade_all(tmp_path, limit=2)
        assert (result["rows"], result["errors"]) == (2, 0)
        assert grades(tmp_path).keys() == {"a", "b"}

    def test_samples_with_other_types_and_more_columns_are_read(self, tmp_path: Path) -> None:
        store = ArtifactStore(str(tmp_path))
        write(store.queries(), [query("a")])
        fields = [
            ("query_id", pa.large_string()),
            ("task", pa.dictionary(pa.int32(), pa.string())),
            ("texts", pa.large_list(pa.string())),
        ]
        schema = pa.schema([*fields, ("greedy_text", pa.string()), ("error", pa.null()), ("note", pa.string())])
        write(store.samples("weak"), [{**sample("a", ["yes", "no"]), "note": "mine"}], schema=schema)
        grade_all(tmp_path)
        assert grades(tmp_path)["a"]["correct"] == [True, False]

    def test_a_damaged_file_is_named_and_the_grades_stay_unfinished(self, tmp_path: Path) -> None:
        store, rng = ArtifactStore(str(tmp_path)), random.Random(0)
        names = [f"q{i}" for i in range(2_000)]
        write(store.queries(), [query(name) for name in names])
        write(store.samples("weak"), [sample(name, [f"{rng.random()}"], f"{rng.random()}") for name in names])
        path = tmp_path / "samples" / "weak" / "theirs.parquet"
        data = bytearray(path.read_bytes())
        middle = len(data) // 3  # inside the texts: the ids before them and the footer behind stay whole
        data[middle : middle + 2_000] = bytes(2_000)
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"samples: .*(cannot be read|column)"):
            grade_all(tmp_path)
        assert store.grades("weak").state() == "unfinished"
        with pytest.raises(ArtifactMissing, match="never finished"):
            store.grades("weak").require()

    def test_real_gsm8k_solutions_are_all_right_from_queries_to_labels(self, tmp_path: Path, shared_data: Path) -> None:
        with gzip.open(shared_data / "gsm8k_test.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines][:200]
        store = ArtifactStore(str(tmp_path))
        write(
            store.queries(), [query(r["id"], task="gsm8k", split="test", reference=json.dumps({"answer": r["gold"]})) for r in rows]
        )
        write(store.samples("strong"), [sample(r["id"], [r["answer"]] * 4, r["answer"], task="gsm8k") for r in rows])
        wrong = "#### 123456789"
        write(store.samples("weak"), [sample(r["id"], [r["answer"], *[wrong] * 3], wrong, task="gsm8k") for r in rows])
        grade_all(tmp_path, None)
        run_labeling(make_config(str(tmp_path)), store)
        for row in store.labels().require().read().to_pylist():
            assert (row["pass_rate_weak"], row["pass_rate_strong"], row["win_rate"], row["soft_block"]) == (0.25, 1.0, 0.25, 0.25)


# Refused before anything is graded -----------------------------------------------------------------------------------


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model huge: models has only \['middle', 'strong', 'weak'\]"):
        grade_all(tmp_path, ["huge"])


def test_missing_samples_name_the_job_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"samples: nothing at .*samples/weak\. Run: python jobs/sample\.py"):
        grade_all(tmp_path)


@pytest.mark.parametrize(
    ("queries", "samples", "error", "named"),
    [
        ([query("a"), query("a")], [sample("a", ["yes"])], ArtifactError, r"queries: .* query_id 'a' comes more than once"),
        ([query("a")], [sample("a", ["yes"])] * 2, ArtifactError, r"samples: .* query_id 'a' comes more than once"),
        ([query("a", task="gsm9k")], [sample("a", ["yes"])], TaskError, r"no task 'gsm9k'; did you mean 'gsm8k'"),
        ([query("a")], [], ArtifactError, r"samples: .* has no rows"),
        ([], [sample("a", ["yes"])], ArtifactError, r"queries: .* has no rows"),
    ],
)
def test_wrong_inputs_are_named_and_nothing_is_written(
    tmp_path: Path, queries: list[Any], samples: list[Any], error: type[Exception], named: str
) -> None:
    store = ArtifactStore(str(tmp_path))
    write(store.queries(), queries)
    write(store.samples("weak"), samples)
    with pytest.raises(error, match=named):
        grade_all(tmp_path)
    assert store.grades("weak").state() == "missing"
