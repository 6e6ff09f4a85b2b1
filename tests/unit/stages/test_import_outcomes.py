import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import grade, make_config
from handmade import write as write_dataset
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.errors import ArtifactError, ConfigError, TaskError
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import query_id

EVERYTHING_IS_TRAIN = {"test": 0, "validation": 0}


def row(query: str, model: str, correct: Any, **fields: Any) -> dict[str, Any]:
    return {"query": query, "model": model, "correct": correct, **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """By the suffix: what a program that knows nothing of this package would write."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def config_for(tmp_path: Path, path: Path, **options: Any) -> Any:
    options = {"models": {"weak": "weak", "strong": "strong"}, "splits": EVERYTHING_IS_TRAIN, **options}
    return make_config(str(tmp_path / "root"), queries={"outcomes": {"path": str(path), **options}})


def import_rows(tmp_path: Path, rows: list[dict[str, Any]], name: str = "outcomes.jsonl", **options: Any) -> ArtifactStore:
    config = config_for(tmp_path, write(tmp_path / name, rows), **options)
    store = ArtifactStore(config.root)
    run_import(config, store)
    return store


def grades(store: ArtifactStore, model: str, question: str = "Why?", task: str = "outcomes") -> dict[str, Any]:
    (found,) = [r for r in store.grades(model).require().read().to_pylist() if r["query_id"] == query_id(task, question)]
    return found


def import_error(tmp_path: Path, rows: list[dict[str, Any]], name: str = "outcomes.jsonl", **options: Any) -> str:
    with pytest.raises(TaskError) as caught:
        import_rows(tmp_path, rows, name, **options)
    assert not (tmp_path / "root" / "queries").exists(), "nothing is written for a bad file"
    return str(caught.value)


PAIR = [row("Why?", "weak", False), row("Why?", "strong", True)]


# What becomes of rows ------------------------------------------------------------------------------------------------


def test_an_answer_of_each_model_becomes_a_query_and_two_grades(tmp_path: Path) -> None:
    store = import_rows(tmp_path, PAIR)
    (query,) = read_queries(store).read().to_pylist()
    assert query == {
        "query_id": query_id("outcomes", "Why?"),
        "task": "outcomes",
        "split": "train",
        "question": "Why?",
        "prompt": "Question: Why?\nAnswer: ",
        "reference": "{}",
    }
    assert grades(store, "strong") == {
        "query_id": query["query_id"],
        "task": "outcomes",
        "model": "strong",
        "correct": [True],
        "greedy_correct": True,
        "error": None,
        "verdicts": None,  # right or not is all that outcomes say
        "greedy_verdict": None,
    }
    assert grades(store, "weak")["correct"] == [False]


@pytest.mark.parametrize("name", ["outcomes.csv", "outcomes.parquet", "outcomes.jsonl"])
@pytest.mark.parametrize("values", [(True, False), (1, 0), (1.0, 0.0), ("true", "False"), ("1", "0"), (" TRUE ", "0.0")])
def test_verdicts_are_read_in_every_spelling_and_format(tmp_path: Path, name: str, values: Any) -> None:
    store = import_rows(tmp_path, [row("Why?", "weak", values[1]), row("Why?", "strong", values[0])], name)
    assert grades(store, "weak")["correct"] == [False]
    assert grades(store, "strong")["correct"] == [True]


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = [row("Why?", "weak", c, sample_index=i) for i, c in ((2, 1), (0, 0), (1, 1), (10, 0))]
    rows += [row("Why?", "strong", 1, sample_index=i) for i in range(4)]
    assert grades(import_rows(tmp_path, rows), "weak")["correct"] == [False, True, True, False]


def test_the_greedy_verdict_is_the_marked_rows_and_else_that_of_half_the_samples(tmp_path: Path) -> None:
    marked = [row("Why?", "weak", 1, greedy=True), row("Why?", "weak", 0, greedy=False), row("Why?", "weak", 0, greedy=False)]
    rows = [*marked, *(row("Why?", "strong", c, greedy=False) for c in (0, 1))]
    store = import_rows(tmp_path, rows)
    assert (grades(store, "weak")["correct"], grades(store, "weak")["greedy_correct"]) == ([False, False], True)
    assert grades(store, "strong")["greedy_correct"] is True  # 1 of 2


def test_greedy_answers_alone_are_one_sample(tmp_path: Path) -> None:
    store = import_rows(tmp_path, [row("Why?", "weak", 1, greedy=1), row("Why?", "strong", 0, greedy=1)])
    assert [(grades(store, m)["correct"], grades(store, m)["greedy_correct"]) for m in ("weak", "strong")] == [
        ([True], True),
        ([False], False),
    ]


def test_a_pass_rate_of_n_samples_becomes_n_verdicts(tmp_path: Path) -> None:
    rows = [row("Why?", "weak", 0.333, num_samples=3), row("Why?", "strong", 1, num_samples=3)]
    store = import_rows(tmp_path, rows)
    assert sorted(grades(store, "weak")["correct"]) == [False, False, True]
    assert grades(store, "weak")["greedy_correct"] is False  # 1 of 3
    assert grades(store, "strong")["correct"] == [True] * 3


def test_fewer_samples_of_one_model_are_repeated_and_no_pass_rate_changes(tmp_path: Path) -> None:
    rows = [*(row("Why?", "weak", c) for c in (1, 0, 0, 0)), *(row("Why?", "strong", c) for c in (1, 1, 0, 1, 1, 0))]
    store = import_rows(tmp_path, rows)
    weak, strong = (grades(store, model)["correct"] for model in ("weak", "strong"))
    assert (len(weak), sum(weak)) == (12, 3)  # 12 = lcm(4, 6); 1/4 = 3/12
    assert (len(strong), sum(strong)) == (12, 8)  # 4/6 = 8/12


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.lists(st.booleans(), min_size=1, max_size=12))
def test_labels_have_the_files_own_pass_rates(
    tmp_path_factory: pytest.TempPathFactory, weak: list[bool], strong: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("outcomes")
    rows = [*(row("Why?", "weak", c) for c in weak), *(row("Why?", "strong", c) for c in strong)]
    config = config_for(folder, write(folder / "outcomes.jsonl", rows))
    run_import(config, ArtifactStore(config.root))
    run_labeling(config, ArtifactStore(config.root))
    (label,) = ArtifactStore(config.root).labels().read().to_pylist()
    assert label["pass_rate_weak"] == pytest.approx(sum(weak) / len(weak))
    assert label["pass_rate_strong"] == pytest.approx(sum(strong) / len(strong))


def test_an_answer_without_a_verdict_leaves_its_query_out_of_the_labels(tmp_path: Path) -> None:
    rows = [*PAIR, row("Who?", "weak", None), row("Who?", "strong", 1), row("When?", "weak", 1)]
    config = config_for(tmp_path, write(tmp_path / "outcomes.jsonl", rows))
    store = ArtifactStore(config.root)
    results = {result["dataset"]: result for result in run_import(config, store)}
    assert results["weak"]["errors"] == 1
    assert results["strong"]["queries_without_answers"] == 1
    assert "row 3 has no verdict" in grades(store, "weak", "Who?")["error"]
    labelled = run_labeling(config, store)
    assert (labelled["labels"], labelled["left_out"]) == (1, {"weak_error": 1, "strong_missing": 1})


def test_a_question_asked_under_two_ids_is_one_query_with_both_answers(tmp_path: Path) -> None:
    rows = [row("Why?", m, c, query_id=i, sample_index=0) for m in ("weak", "strong") for i, c in (("a", 1), ("b", 0))]
    assert grades(import_rows(tmp_path, rows), "weak")["correct"] == [True, False]


def test_columns_and_models_are_called_what_the_config_says(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "llm": "mistral", "em": 0, "correct": 1, "split": "test", "bench": "nq"},
        {"prompt": "Why?", "llm": "gpt", "em": 1, "correct": 0, "split": "test", "bench": "nq"},
        {"prompt": "Why?", "llm": "other", "em": 7, "correct": 0, "split": "dev", "bench": ""},  # nobody asked for it
    ]
    columns = {"query": "prompt", "model": "llm", "correct": "em", "task": "bench"}
    store = import_rows(tmp_path, rows, columns=columns, models={"weak": "mistral", "strong": "gpt"})
    assert grades(store, "strong", task="nq")["correct"] == [True]
    (query,) = read_queries(store).read().to_pylist()
    assert (query["task"], query["split"]) == ("nq", "test")
    ignoring = {**columns, "split": None}
    (tmp_path / "2").mkdir()
    store = import_rows(tmp_path / "2", rows, columns=ignoring, models={"weak": "mistral", "strong": "gpt"})
    assert read_queries(store).read()["split"].to_pylist() == ["train"]


def test_every_query_is_test_in_one_fold_and_folds_share_validation_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "outcomes.csv", [row(f"Why {i}?", model, i % 2) for i in range(60) for model in ("weak", "strong")])
    tests: list[str] = []
    for fold in range(3):
        config = config_for(tmp_path, path, splits={"folds": 3, "fold": fold, "validation": 0.2})
        store = ArtifactStore(str(tmp_path / f"fold_{fold}"))
        run_import(config, store)
        queries = read_queries(store).read().to_pylist()
        assert set(Counter(q["split"] for q in queries)) == {"train", "validation", "test"}
        tests += [q["query_id"] for q in queries if q["split"] == "test"]
    assert len(tests) == len(set(tests)) == 60


# Again and again -----------------------------------------------------------------------------------------------------


def test_a_second_import_is_skipped_until_the_file_or_its_options_change(tmp_path: Path) -> None:
    path = write(tmp_path / "outcomes.jsonl", PAIR)
    config = config_for(tmp_path, path)
    store = ArtifactStore(config.root)

    def actions(config: Any, **arguments: Any) -> set[str]:
        return {result["action"] for result in run_import(config, store, **arguments)}

    assert actions(config) == {"run"}
    assert actions(config) == {"skip"}
    assert actions(config, force=True) == {"run"}
    assert actions(config_for(tmp_path, path, task="other")) == {"run"}
    write(path, [*PAIR, row("Who?", "weak", 1)])
    assert actions(config) == {"run"}
    assert actions(config, limit=1) == {"run"}
    assert store.queries().num_rows() == 1


def test_grades_of_another_program_are_not_overwritten(tmp_path: Path) -> None:
    config = config_for(tmp_path, write(tmp_path / "outcomes.jsonl", PAIR))
    store = ArtifactStore(config.root)
    write_dataset(store.grades("strong"), [grade("a", "1")])
    with pytest.raises(ArtifactError, match="another program wrote"):
        run_import(config, store)
    assert store.queries().state() == "missing"


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (row("Who?", "weak", 2), r"row 3: `correct` must be true or false, or a number from 0 to 1; there is 2"),
        (row("Who?", "weak", "yes"), r"row 3: `correct`.*'yes'"),
        (row("Who?", "weak", [True]), r"row 3: `correct`"),
        (row("Who?", "weak", -0.1), r"row 3: `correct`"),
        (row("Who?", "weak", 0.4), r"row 3: `correct` is 0.4. A pass rate needs the number of samples.*columns\.num_samples"),
        (row("", "weak", 1), r"row 3: `query` must be a text"),
        (row("Who?", None, 1), r"row 3: `model` must be a text"),
        ({"query": "Who?", "correct": 1}, r"row 3: `model` must be a text"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_column(tmp_path: Path, bad: dict[str, Any], named: str) -> None:
    with pytest.raises(TaskError, match=rf"outcomes\.jsonl, {named}"):
        raise TaskError(import_error(tmp_path, [*PAIR, bad]))


@pytest.mark.parametrize(
    ("fields", "bad", "named"),
    [
        ({"split": "train"}, {"split": "dev"}, r"row 3: `split` must be one of train, validation, test.*'dev'.*split: null"),
        ({"split": "train"}, {"split": "test"}, r"row 3: the question is of the split 'test', and of 'train'"),
        ({"sample_index": 0}, {"sample_index": 0}, r"row 3: sample 0 of 'weak' on this question comes twice"),
        ({"sample_index": 0}, {"sample_index": 0.5}, r"row 3: `sample_index` must be a whole number from 0"),
        ({"sample_index": 0}, {"sample_index": None}, r"row 3: `sample_index`"),
        ({"num_samples": 2}, {"num_samples": 0}, r"row 3: `num_samples` must be a whole number from 1"),
        ({"num_samples": 2}, {"num_samples": 10**9}, r"row 3.*at most 10,000 samples"),
        ({"greedy": False}, {"greedy": 0.5}, r"row 3: `greedy` must be true or false"),
        ({"greedy": False, "num_samples": 1}, {"greedy": True, "num_samples": 4}, r"row 3: a greedy answer is one verdict"),
        ({"task": "nq"}, {"task": ""}, r"row 3: `task` must be a text"),
    ],
)
def test_a_bad_optional_value_is_named_with_its_row(tmp_path: Path, fields: Any, bad: Any, named: str) -> None:
    rows = [{**r, **fields} for r in (*PAIR, row("Why?", "weak", 1))]
    rows[2] |= bad
    with pytest.raises(TaskError, match=named):
        raise TaskError(import_error(tmp_path, rows))


def test_a_rate_that_is_no_share_of_n_is_refused(tmp_path: Path) -> None:
    rows = [row("Why?", "weak", 0.4, num_samples=4), row("Why?", "strong", 1, num_samples=4)]
    assert "0.4 of 4 samples, which is 1.6 right ones" in import_error(tmp_path, rows)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    message = import_error(tmp_path, PAIR, columns={"query": "prompt"})
    assert "no column 'prompt', only ['correct', 'model', 'query']" in message
    assert "queries.outcomes.columns.query" in message
    assert "columns.split" in import_error(tmp_path, PAIR, columns={"split": "fold"})  # optional, but named


def test_a_model_without_rows_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    message = import_error(tmp_path, PAIR, models={"weak": "weak", "strong": "gpt"})
    assert "no rows of 'gpt', the model strong. It has ['strong', 'weak']" in message


def test_a_csv_row_of_another_width_is_named(tmp_path: Path) -> None:
    (tmp_path / "outcomes.csv").write_text("query,model,correct\nWhy?,weak,1\nWhy, oh why?,weak,1\n")
    config = config_for(tmp_path, tmp_path / "outcomes.csv")
    with pytest.raises(TaskError, match=r"outcomes\.csv, row 2"):
        run_import(config, ArtifactStore(config.root))


def test_numbers_of_samples_without_a_small_common_multiple_are_refused(tmp_path: Path) -> None:
    rows = [row("Why?", "weak", 1, num_samples=101), row("Why?", "strong", 1, num_samples=103)]
    assert "'Why?' has {'weak': 101, 'strong': 103} answers" in import_error(tmp_path, rows)  # 10,403 together


def test_what_the_config_does_not_say_is_asked_for(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "root"))
    with pytest.raises(ConfigError, match=r"queries\.outcomes is not set"):
        run_import(make_config(str(tmp_path / "root")), store)
    with pytest.raises(TaskError, match=r"queries\.outcomes\.path: .*none\.csv: No such file"):
        run_import(config_for(tmp_path, tmp_path / "none.csv"), store)
    path = write(tmp_path / "outcomes.jsonl", PAIR)
    with pytest.raises(ConfigError, match=r"queries\.outcomes\.models names 'huge'"):
        run_import(config_for(tmp_path, path, models={"huge": "weak"}), store)
    with pytest.raises(ConfigError, match="the same name"):
        run_import(config_for(tmp_path, path, models={"weak": "a", "strong": "a"}), store)
    path.write_text("")
    with pytest.raises(TaskError, match="has no rows"):
        run_import(config_for(tmp_path, path), store)


# Real outcomes -------------------------------------------------------------------------------------------------------


def test_published_gsm8k_outcomes_give_the_published_accuracies(tmp_path: Path, shared_data: Path) -> None:
    config = config_for(
        tmp_path,
        shared_data / "outcomes" / "routellm_gsm8k.parquet",
        columns={"query": "prompt", "correct": "last_number_correct", "split": None},
        models={"weak": "mistralai/Mixtral-8x7B-Instruct-v0.1", "strong": "gpt-4-1106-preview"},
    )
    store = ArtifactStore(config.root)
    run_import(config, store)
    assert run_labeling(config, store)["labels"] == 1_319
    labels = store.labels().read().to_pandas()
    assert labels["pass_rate_weak"].mean() == pytest.approx(839 / 1_319)
    assert labels["pass_rate_strong"].mean() == pytest.approx(1_172 / 1_319)


def test_outcomes_judged_by_people_keep_what_they_did_not_judge_out(tmp_path: Path, shared_data: Path) -> None:
    config = config_for(
        tmp_path,
        shared_data / "outcomes" / "evouna_triviaqa.parquet",
        columns={"query": "prompt", "model": "model_key"},
        models={"weak": "gpt35", "strong": "gpt4"},
    )
    store = ArtifactStore(config.root)
    results = {result["dataset"]: result for result in run_import(config, store)}
    assert results["queries"]["rows"] == 1_999  # one question is asked twice
    assert results["weak"]["errors"] == results["strong"]["errors"] == 15
    assert run_labeling(config, store)["labels"] == 1_984


# Rows that lack what others have --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [("split", "train"), ("task", "nq"), ("greedy", False), ("sample_index", 3), ("query_id", "a"), ("num_samples", 1)],
)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_optional_column_in_some_rows_alone_is_refused(tmp_path: Path, column: str, value: Any, where: int) -> None:
    rows = [{**r} if i == where else {**r, column: value} for i, r in enumerate([*PAIR, row("Who?", "weak", 1)])]
    message = import_error(tmp_path, rows)
    assert f"row {max(where, 1) + 1}: {'has' if where == 0 else 'lacks'} {column!r}" in message
    assert f"queries.outcomes.columns.{column}: null" in message
    store = import_rows(tmp_path, rows, columns={column: None})
    assert store.queries().num_rows() == 2


@pytest.mark.parametrize("name", ["outcomes.csv", "outcomes.parquet"])
@pytest.mark.parametrize("column", ["split", "query_id"])
def test_an_optional_column_with_gaps_is_refused(tmp_path: Path, name: str, column: str) -> None:
    rows = [{**r, column: "train"} for r in PAIR] + [row("Who?", "weak", True, **{column: None})]
    message = import_error(tmp_path, rows, name)
    assert "row 3" in message
    assert f"queries.outcomes.columns.{column}: null" in message


def test_rows_of_other_models_may_lack_what_ours_have(tmp_path: Path) -> None:
    rows = [row("Why?", "other", 1), *({**r, "split": "test"} for r in PAIR), row("Why?", "other", 1, greedy=True)]
    assert read_queries(import_rows(tmp_path, rows)).read()["split"].to_pylist() == ["test"]


def test_greedy_answers_that_disagree_are_refused_and_those_that_agree_are_one(tmp_path: Path) -> None:
    rows = [row("Why?", "weak", 1, greedy=True), row("Why?", "strong", 1, greedy=True), row("Why?", "weak", 0, greedy=True)]
    message = import_error(tmp_path, rows)
    assert "row 3: a greedy answer of 'weak' to this question is False, but True in a row before" in message
    assert grades(import_rows(tmp_path, [*rows[:2], rows[0]]), "weak")["correct"] == [True]


def test_queries_of_many_buckets_keep_the_files_order_and_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall_ray.stages.import_outcomes.BUCKET_BYTES", 100)  # about a bucket a row
    rows = [
        row(f"Why {i}?", model, (i + (model == "weak")) % 2, split=("train", "test")[i % 3 == 0])
        for model in ("weak", "strong")
        for i in range(40)
    ]
    store = import_rows(tmp_path, rows)
    assert store.queries().read()["question"].to_pylist() == [f"Why {i}?" for i in range(40)]
    for model in ("weak", "strong"):
        read = store.grades(model).read()
        assert read["query_id"].to_pylist() == store.queries().read()["query_id"].to_pylist()
        assert read["correct"].to_pylist() == [[bool((i + (model == "weak")) % 2)] for i in range(40)]
    config = config_for(tmp_path, tmp_path / "outcomes.jsonl")
    run_import(config, store, limit=6)  # 26 train and 14 test: 4 and 2 of 6, the first of each
    assert store.queries().read()["question"].to_pylist() == [f"Why {i}?" for i in (0, 1, 2, 3, 4, 5)]
