"""Files of outcomes with a row a query and the verdicts of all models, as LLMRouterBench, ZeroEval and LLMRouter publish them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config

from firewall_ray.config.run import load_config
from firewall_ray.errors import ConfigError, TaskError
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.stages.label import run_labeling
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import query_id

EVERYTHING_IS_TRAIN = {"test": 0, "validation": 0}
WIDE = {"verdicts": "scores"}


def imported(tmp_path: Path, path: Path, columns: dict[str, Any] = WIDE, **options: Any) -> ArtifactStore:
    options = {"models": {"weak": "a", "strong": "b"}, "splits": EVERYTHING_IS_TRAIN, **options}
    outcomes = {"path": str(path), "columns": columns, **options}
    store = ArtifactStore(str(tmp_path / "root"))
    run_import(make_config(store.root, queries={"outcomes": outcomes}), store)
    return store


def jsonl(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(tmp_path: Path, *rows: dict[str, Any], columns: dict[str, Any] = WIDE, **options: Any) -> str:
    with pytest.raises(TaskError) as caught:
        imported(tmp_path, jsonl(tmp_path, *rows), columns, **options)
    assert not (tmp_path / "root" / "queries").exists(), "nothing is written for a bad file"
    return str(caught.value)


def asked(scores: Any, query: str = "Why?", **fields: Any) -> dict[str, Any]:
    return {"query": query, "scores": scores, **fields}


def grades(store: ArtifactStore, model: str) -> list[tuple[Any, Any]]:
    """(correct, error) in the order of queries/."""
    rows = {row["query_id"]: row for row in store.grades(model).require().read().to_pylist()}
    ids = store.queries().read()["query_id"].to_pylist()
    return [(rows[each]["correct"], rows[each]["error"]) for each in ids if each in rows]


# What becomes of a row -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [{"a": 0, "b": 1, "c": 1}, {"a": False, "b": True}, {"b": 1.0, "a": 0.0}])
def test_a_row_a_query_says_the_same_as_a_row_an_answer(tmp_path: Path, scores: dict[str, Any]) -> None:
    store = imported(tmp_path, jsonl(tmp_path, asked(scores), asked({"a": 1, "b": 0}, "Who?")))
    assert store.queries().read()["query_id"].to_pylist() == [query_id("outcomes", "Why?"), query_id("outcomes", "Who?")]
    assert grades(store, "weak") == [([False], None), ([True], None)]
    assert grades(store, "strong") == [([True], None), ([False], None)]


def test_a_verdict_inside_an_object_is_found_by_its_field_and_the_objects_other_fields_are_read(tmp_path: Path) -> None:
    models = {"a": {"passed": 0.25, "num_samples": 4, "cost_usd": 0.1}, "b": {"passed": 1, "num_samples": 2}}
    store = imported(tmp_path, jsonl(tmp_path, {"query": "Why?", "models": models}), {"verdicts": "models", "correct": "passed"})
    assert [sum(correct) for correct, _ in grades(store, "weak")] == [1]  # 1 of 4
    assert grades(store, "strong") == [([True] * 4, None)]  # 2 of 2, repeated to 4


def test_parquet_holds_verdicts_as_a_struct_or_as_a_map(tmp_path: Path) -> None:
    struct = pa.array([{"a": 0, "b": 1}, {"a": 1, "b": None}], pa.struct([("a", pa.int8()), ("b", pa.int8())]))
    of_maps = pa.array([[("a", 0), ("b", 1)], [("a", 1)]], pa.map_(pa.string(), pa.int8()))
    nested = pa.array(
        [[("a", {"ok": False}), ("b", {"ok": True})], [("a", {"ok": True})]],
        pa.map_(pa.string(), pa.struct([("ok", pa.bool_())])),
    )
    for name, column in {"struct": struct, "map": of_maps, "nested": nested}.items():
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"query": ["Why?", "Who?"], "scores": column}), folder / "outcomes.parquet")
        store = imported(folder, folder / "outcomes.parquet", {**WIDE, "correct": "ok"})
        assert grades(store, "weak") == [([False], None), ([True], None)]
        assert grades(store, "strong")[0] == ([True], None)
        # A struct has every field in every row, a map only what was put in: no verdict, or no answer.
        assert [correct for correct, _ in grades(store, "strong")[1:]] == ([None] if name == "struct" else [])


def test_a_model_without_a_verdict_leaves_the_query_out_of_the_labels(tmp_path: Path) -> None:
    path = jsonl(tmp_path, asked({"a": 0, "b": 1}), asked({"a": None, "b": 1}, "Who?"), asked({"a": 1}, "When?"))
    store = imported(tmp_path, path)
    assert "row 2, 'a' in `scores` has no verdict" in grades(store, "weak")[1][1]
    config = make_config(store.root)
    labelled = run_labeling(config, store)
    assert (labelled["labels"], labelled["left_out"]) == (1, {"weak_error": 1, "strong_missing": 1})


def test_optional_columns_of_the_row_hold_for_all_its_models(tmp_path: Path) -> None:
    store = imported(tmp_path, jsonl(tmp_path, asked({"a": 0, "b": 1}, split="test", task="nq")))
    (query,) = store.queries().read().to_pylist()
    assert (query["split"], query["task"]) == ("test", "nq")


def test_queries_of_many_buckets_keep_the_files_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall_ray.stages.import_outcomes.BUCKET_BYTES", 100)  # about a bucket a row
    store = imported(tmp_path, jsonl(tmp_path, *(asked({"a": i % 2, "b": i % 3 == 0}, f"Why {i}?") for i in range(40))))
    assert store.queries().read()["question"].to_pylist() == [f"Why {i}?" for i in range(40)]
    assert grades(store, "weak") == [([i % 2 == 1], None) for i in range(40)]
    assert grades(store, "strong") == [([i % 3 == 0], None) for i in range(40)]


# Families ------------------------------------------------------------------------------------------------------------


def test_the_models_of_a_family_are_the_samples_of_one(tmp_path: Path) -> None:
    rows = [asked({"a1": 1, "a2": 0, "a3": 0, "b1": 1, "b2": 1}), asked({"a1": 1, "a2": 0, "a3": 1, "b1": 0, "b2": 1}, "Who?")]
    store = imported(tmp_path, jsonl(tmp_path, *rows), models={"weak": ["a1", "a2", "a3"], "strong": ["b1", "b2"]})
    # Three and two: both repeated to 6, the least common multiple.
    assert grades(store, "weak")[0] == ([True, True, False, False, False, False], None)
    run_labeling(make_config(store.root), store)
    labels = {row["query_id"]: row for row in store.labels().read().to_pylist()}
    why, who = (labels[query_id("outcomes", question)] for question in ("Why?", "Who?"))
    assert (why["pass_rate_weak"], why["pass_rate_strong"]) == (pytest.approx(1 / 3), 1)
    assert (who["pass_rate_weak"], who["pass_rate_strong"]) == (pytest.approx(2 / 3), 0.5)
    assert (why["greedy_weak"], who["greedy_weak"], who["greedy_strong"]) == (False, True, True)  # 1 of 3, 2 of 3, 1 of 2
    assert why["soft_block"] == pytest.approx(1 / 3)  # 1 - (1 - 1/3) * 1


def test_a_family_counts_each_model_alike_however_often_it_was_sampled(tmp_path: Path) -> None:
    models = {"a1": {"correct": 0, "num_samples": 4}, "a2": {"correct": 1, "num_samples": 1}, "b": {"correct": 1, "num_samples": 1}}
    store = imported(tmp_path, jsonl(tmp_path, asked(models)), models={"weak": ["a1", "a2"], "strong": "b"})
    ((correct, _),) = grades(store, "weak")
    assert sum(correct) / len(correct) == 0.5  # not 1 of 5


def test_a_family_of_a_file_with_a_row_an_answer(tmp_path: Path) -> None:
    rows = [{"query": "Why?", "model": model, "correct": correct} for model, correct in (("a1", 1), ("b", 1), ("a2", 0))]
    store = imported(tmp_path, jsonl(tmp_path, *rows), {}, models={"weak": ["a1", "a2"], "strong": "b"})
    assert grades(store, "weak") == [([True, False], None)]
    assert grades(store, "strong") == [([True, True], None)]


def test_a_query_that_lacks_a_model_of_a_family_is_left_out_and_says_which(tmp_path: Path) -> None:
    path = jsonl(tmp_path, asked({"a1": 1, "a2": 0, "b": 1}), asked({"a1": 1, "b": 1}, "Who?"))
    store = imported(tmp_path, path, models={"weak": ["a1", "a2"], "strong": "b"})
    assert grades(store, "weak") == [([True, False], None), (None, "there is no answer of 'a2'")]


def test_a_model_that_stands_twice_in_a_family_or_in_two_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, asked({"a": 1, "b": 0}))
    for models in ({"weak": ["a", "a"], "strong": "b"}, {"weak": ["a", "b"], "strong": "b"}):
        with pytest.raises(ConfigError, match=r"queries\.outcomes\.models gives two models the same name"):
            imported(tmp_path, path, models=models)


# Graded scores -------------------------------------------------------------------------------------------------------


def test_a_score_is_right_from_the_threshold_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path, asked({"a": 0.49, "b": 0.5}), asked({"a": 0, "b": 1}, "Who?"), asked({"a": 0.667, "b": 0.2}, "When?"))
    store = imported(tmp_path, path, threshold=0.5)
    assert [correct for correct, _ in grades(store, "weak")] == [[False], [False], [True]]
    assert [correct for correct, _ in grades(store, "strong")] == [[True], [True], [False]]


def test_a_score_without_a_threshold_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    message = refusal(tmp_path, asked({"a": 0.667, "b": 1}))
    assert "row 1, 'a' in `scores`: `correct` is 0.667" in message
    assert "queries.outcomes.columns.num_samples" in message
    assert "queries.outcomes.threshold" in message


def test_a_threshold_and_pass_rates_exclude_each_other(tmp_path: Path) -> None:
    message = refusal(tmp_path, asked({"a": 0.5, "b": 1}, num_samples=2), threshold=0.5)
    assert "row 1" in message
    assert "`num_samples`" in message
    store = imported(tmp_path, tmp_path / "outcomes.jsonl", {**WIDE, "num_samples": None}, threshold=0.5)
    assert grades(store, "weak") == [([True], None)]


# Bad input -----------------------------------------------------------------------------------------------------------

GOOD = asked({"a": 1, "b": 0})


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (asked(1, "Who?"), "row 2: `scores` must map models to verdicts, there is 1"),
        (asked(None, "Who?"), "row 2: `scores` must map models to verdicts, there is None"),
        (asked([["a", 1]], "Who?"), "row 2: `scores` must map models to verdicts, there is [['a', 1]]"),
        (asked({"a": "yes", "b": 1}, "Who?"), "row 2, 'a' in `scores`: `correct` must be true or false"),
        (asked({"a": 1, "b": 2}, "Who?"), "row 2, 'b' in `scores`: `correct` must be"),
        (asked({"a": [1], "b": 1}, "Who?"), "row 2, 'a' in `scores`: `correct` must be"),
        (asked({"a": {"passed": 1}, "b": 1}, "Who?"), "row 2, 'a' in `scores`: there is no column 'correct', only ['passed']"),
        (asked({"a": 1, "b": 1}, ""), "row 2, 'a' in `scores`: `query` must be a text"),
        ({"query": "Who?", "marks": {"a": 1}}, "row 2: there is no column 'scores', only ['marks', 'query']"),
    ],
)
def test_a_bad_value_is_named_with_its_row_its_model_and_its_field(tmp_path: Path, bad: dict[str, Any], named: str) -> None:
    assert named in refusal(tmp_path, GOOD, bad)


def test_what_models_that_nobody_asked_for_have_is_not_read(tmp_path: Path) -> None:
    store = imported(tmp_path, jsonl(tmp_path, asked({"c": "?", "a": 1, "b": 0}), asked({"c": {}}, "Who?")))
    assert grades(store, "weak") == [([True], None)]


def test_a_model_that_no_row_has_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD, models={"weak": "a", "strong": ["b", "gpt"]})
    assert "no rows of 'gpt', the model strong. It has ['a', 'b']" in message


def test_a_map_that_names_a_model_twice_is_refused(tmp_path: Path) -> None:
    column = pa.array([[("a", 0), ("a", 1)]], pa.map_(pa.string(), pa.int8()))
    pq.write_table(pa.table({"query": ["Why?"], "scores": column}), tmp_path / "outcomes.parquet")
    with pytest.raises(TaskError, match="row 1: `scores` names a key twice"):
        imported(tmp_path, tmp_path / "outcomes.parquet")
    assert "the field 'a' comes twice" in _refused_text(tmp_path, '{"query": "Why?", "scores": {"a": 1, "a": 0}}\n')


def _refused_text(tmp_path: Path, text: str) -> str:
    (tmp_path / "outcomes.jsonl").write_text(text)
    with pytest.raises(TaskError) as caught:
        imported(tmp_path, tmp_path / "outcomes.jsonl")
    return str(caught.value)


def test_csv_cannot_hold_a_mapping_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "outcomes.csv").write_text('query,scores\nWhy?,"{""a"": 1}"\n')
    with pytest.raises(TaskError, match=r"outcomes\.csv: CSV cannot hold.*JSON Lines or Parquet"):
        imported(tmp_path, tmp_path / "outcomes.csv")


def test_a_question_in_two_splits_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [asked({"a": 1, "b": 0}, split="train"), asked({"a": 1, "b": 0}, split="test")]
    assert "row 2, 'a' in `scores`: the question is of the split 'test', and of 'train'" in refusal(tmp_path, *rows)


@pytest.mark.parametrize(
    ("outcomes", "named"),
    [
        ("columns: {verdicts: scores, model: llm}", "queries.outcomes.columns: `model` is for files with a row an answer"),
        ("models: {weak: [], strong: b}", "queries.outcomes.models.weak: List should have at least 1 item"),
        ("threshold: 0", "queries.outcomes.threshold: Input should be greater than 0"),
    ],
)
def test_a_wrong_config_names_the_key(tmp_path: Path, outcomes: str, named: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"root: r\nqueries: {{outcomes: {{path: o.jsonl, {outcomes}}}}}\nmodels: {{weak: {{path: a}}, strong: {{path: b}}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert named in str(caught.value)


# Published files -----------------------------------------------------------------------------------------------------


def test_published_gsm8k_verdicts_of_families_give_the_mean_of_their_accuracies(tmp_path: Path, shared_data: Path) -> None:
    store = imported(
        tmp_path,
        shared_data / "outcomes" / "zeroeval_gsm8k.jsonl.gz",
        {"verdicts": "correct", "task": None},
        models={"weak": ["command-r", "command-r-plus"], "strong": "gpt-4o-2024-08-06"},
    )
    assert run_labeling(make_config(store.root), store)["labels"] == 1_319
    labels = store.labels().read().to_pandas()
    assert labels["pass_rate_weak"].mean() == pytest.approx((0.530 + 0.801) / 2, abs=1e-3)  # counted apart, with a loop
    assert labels["pass_rate_strong"].mean() == pytest.approx(0.962, abs=1e-3)


def test_published_objects_of_verdicts_and_costs_are_read_where_a_query_has_both_models(tmp_path: Path, shared_data: Path) -> None:
    with gzip.open(shared_data / "outcomes" / "omnisbench_2026_08.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["query"] is not None]
    haiku, opus = "anthropic/claude-haiku-4-5", "anthropic/claude-opus-5"
    store = imported(
        tmp_path,
        jsonl(tmp_path, *rows),
        {"verdicts": "models", "correct": "passed", "task": "dataset"},
        models={"weak": haiku, "strong": opus},
    )
    run_labeling(make_config(store.root), store)
    answers: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if haiku in row["models"]:
            answers.setdefault((row["dataset"], row["query"]), []).append(row["models"][haiku]["passed"])
    labels = store.labels().read().to_pandas()
    expected = {query_id(*asked_as): sum(passed) / len(passed) for asked_as, passed in answers.items()}
    assert dict(zip(labels["query_id"], labels["pass_rate_weak"], strict=True)) == pytest.approx(expected)
    assert len(expected) > 80


def test_published_scores_need_a_threshold_and_a_question_of_two_splits_is_found(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "outcomes" / "llmrouter_9_models.jsonl.gz"
    models = {"weak": "mistral-7b-instruct-v0.3", "strong": "llama-3.1-nemotron-51b-instruct"}
    columns = {"query": "question", "verdicts": "scores"}
    with pytest.raises(TaskError, match=r"row \d+, '.*' in `scores`: `correct` is 0\.\d+.*queries\.outcomes\.threshold"):
        imported(tmp_path, path, columns, models=models)
    with pytest.raises(TaskError, match="the question is of the split 'test', and of 'train' in a row before"):
        imported(tmp_path, path, columns, models=models, threshold=0.5)
    store = imported(tmp_path, path, {**columns, "split": None, "sample_index": None}, models=models, threshold=0.5)
    assert store.queries().num_rows() == 5_989
