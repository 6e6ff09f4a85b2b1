"""What live queries are graded by."""

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import make_config, write
from relabel_parts import chat, label, log

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import TaskError
from firewall_ray.relabel.draw import run_draw
from firewall_ray.relabel.references import read_references, run_references
from firewall_ray.relabel.stores import RoundStore
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import get_task
from firewall_ray.tasks.base import prompt_id


def round_of(config: RunConfig, store: ArtifactStore, *questions: str) -> RoundStore:
    write(store.labels(), [label("q", "p")])
    log(store, *(chat(question) for question in questions))
    round_store = RoundStore(store.root, "may")
    run_draw(config, store, round_store)
    return round_store


def references(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "references.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def queries_of(round_store: RoundStore) -> dict[str, tuple[str, Any]]:
    return {row["question"]: (row["task"], json.loads(row["reference"])) for row in round_store.queries().read().to_pylist()}


def test_a_question_of_a_task_is_graded_by_it_and_keeps_its_split(config: RunConfig, store: ArtifactStore) -> None:
    assert config.queries.tasks is not None
    of_task = list(get_task("tiny_world").load(config.queries.tasks.options()["tiny_world"]))
    chosen = {split: next(query for query in of_task if query.split == split) for split in ("train", "validation", "test")}
    round_store = round_of(config, store, "Nobody knows?", *(query.question for query in chosen.values()))
    result = run_references(config, round_store)
    assert {name: result[name] for name in ("queries", "not_gradable", "train", "validation", "test")} == {
        "queries": 3,
        "not_gradable": 1,
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    rows = {row["question"]: row for row in round_store.queries().require().read().to_pylist()}
    assert {rows[query.question]["split"]: rows[query.question]["reference"] for query in chosen.values()} == {
        split: query.reference for split, query in chosen.items()
    }
    assert all(row["query_id"] == prompt_id(row["prompt"]) for row in rows.values())


def test_a_users_reference_is_above_the_tasks_but_a_test_question_stays_one(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    assert config.queries.tasks is not None
    query = next(q for q in get_task("tiny_world").load(config.queries.tasks.options()["tiny_world"]) if q.split == "test")
    round_store = round_of(config, store, query.question)
    run_references(config, round_store, references=references(tmp_path, {"question": query.question, "reference": "mine"}))
    (row,) = round_store.queries().read().to_pylist()
    assert (row["split"], json.loads(row["reference"])) == ("test", {"answer": "mine"})


def test_references_name_a_query_by_id_prompt_or_question(config: RunConfig, store: ArtifactStore, tmp_path: Path) -> None:
    round_store = round_of(config, store, "A?", "B?", "C?", "D?")
    rows = [
        {"query_id": chat("A?")[0], "reference": "7"},
        {"prompt": "Question: B?\nAnswer: ", "reference": {"aliases": ["seven"]}, "task": "triviaqa"},
        {"question": "C?", "reference": '{"answer": "18"}', "task": "gsm8k"},
        {"question": "Never asked?", "reference": "8"},
    ]
    result = run_references(config, round_store, references=references(tmp_path, *rows))
    assert queries_of(round_store) == {
        "A?": ("tiny_world", {"answer": "7"}),
        "B?": ("triviaqa", {"aliases": ["seven"]}),
        "C?": ("gsm8k", {"answer": "18"}),
    }
    assert (result["queries"], result["not_gradable"]) == (3, 1)


def test_more_references_later_add_queries_and_the_same_ones_change_nothing(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    round_store = round_of(config, store, "A?", "B?")
    rows = [{"question": name, "reference": "7"} for name in ("A?", "B?")]
    run_references(config, round_store, references=references(tmp_path, rows[0]))
    assert run_references(config, round_store, references=references(tmp_path, rows[0]))["action"] == "skip"
    assert run_references(config, round_store, references=references(tmp_path, *rows))["action"] == "run"
    assert queries_of(round_store).keys() == {"A?", "B?"}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"question": "A?"}], r"row 1: `reference` is missing"),
        ([{"question": "A?", "reference": ""}], r"row 1: `reference` is missing"),
        ([{"reference": "7"}], r"row 1: `question` must be a text"),
        ([{"query_id": 7, "reference": "7"}], r"row 1: `query_id` must be a text"),
        ([{"question": "A?", "reference": "7", "task": "gsm8"}], r"row 1: There is no task 'gsm8'; did you mean 'gsm8k'"),
        ([{"question": "A?", "reference": "7"}, {"question": "A?", "reference": "8"}], r"row 2: this query has another reference"),
        ([{"question": "A?", "reference": " ", "task": "support"}], r"row 1: `reference` must be a text"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_reference_is_refused_with_its_row_and_nothing_is_written(
    store: ArtifactStore, tmp_path: Path, rows: list[dict[str, Any]], named: str
) -> None:
    (tmp_path / "support.jsonl").write_text('{"question": "S?", "answer": "yes"}')
    support = {"support": {"source": str(tmp_path / "support.jsonl")}}
    tasks = {"tiny_world": {"num_train": 2, "num_validation": 0, "num_test": 0}}
    rows = [{"task": "tiny_world", **row} for row in rows]
    config = make_config(store.root, queries={"tasks": {**tasks, "custom": support}})
    round_store = round_of(config, store, "A?")
    with pytest.raises(TaskError, match=named):
        run_references(config, round_store, references=references(tmp_path, *rows))
    assert round_store.queries().state() == "missing"


def test_a_query_without_a_reference_can_be_given_to_a_judge(store: ArtifactStore, tmp_path: Path) -> None:
    judge = {"base_url": "http://localhost:8000/v1", "model": "j"}
    own = {"source": "-", "answer": None, "grader": "judge", "judge": judge}
    config = make_config(store.root, queries={"tasks": {"custom": {"chats": own}}})
    given = read_references(
        references(tmp_path, {"question": "A?", "reference": None}, {"question": "B?", "reference": "7"}), config
    )
    assert [json.loads(reference.reference) for reference in given.values()] == [{"answer": None}, {"answer": "7"}]


def test_without_a_task_column_the_config_must_have_a_single_task(store: ArtifactStore, tmp_path: Path) -> None:
    few = {"num_train": 2, "num_validation": 0, "num_test": 0}
    config = make_config(store.root, queries={"tasks": {"tiny_facts": few, "tiny_sums": few}})
    round_store = round_of(config, store, "A?")
    with pytest.raises(TaskError, match=r"row 1: `task` is missing, and the config has 2 tasks \(tiny_facts, tiny_sums\)"):
        run_references(config, round_store, references=references(tmp_path, {"question": "A?", "reference": "7"}))


def test_where_nothing_can_be_graded_the_message_says_where_the_texts_are(config: RunConfig, store: ArtifactStore) -> None:
    round_store = round_of(config, store, "Nobody knows?")
    with pytest.raises(TaskError, match=r"None of the 1 drawn queries has a reference.*relabel/may/drawn.*--references FILE"):
        run_references(config, round_store)
