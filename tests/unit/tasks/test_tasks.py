import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config.queries import TasksConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import TaskError
from firewall_ray.tasks import TASKS, get_task
from firewall_ray.tasks.base import make_query, query_id
from firewall_ray.tasks.tiny_world import RIVAL_SHARE, draw_unique

OPTIONS = {"seed": 0, "num_train": 30, "num_validation": 5, "num_test": 10}


def test_an_unknown_task_names_the_ones_that_exist() -> None:
    with pytest.raises(TaskError, match=r"no task 'gsm8'; did you mean 'gsm8k'\?.*\['gsm8k'"):
        get_task("gsm8")


def test_every_task_has_options_in_the_config_and_limits_for_sampling() -> None:
    assert set(TASKS) <= set(TasksConfig.model_fields)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.max_tokens >= 1
        assert all(isinstance(stop, str) and stop for stop in task.stop)


def test_every_grading_section_belongs_to_a_task() -> None:
    sections = set(RunConfig.model_fields["grading"].annotation.model_fields) - {"batch_size"}  # type: ignore[union-attr]
    assert sections <= set(TASKS)


def test_an_id_depends_on_task_and_question_alone() -> None:
    # printf '["gsm8k", "How many?"]' | sha256sum
    assert query_id("gsm8k", "How many?") == "f6cfadd18c42f089"
    one, other = make_query("t", "train", "Why?", "{}"), make_query("t", "test", "Why?", '{"a": 1}')
    assert one.query_id == other.query_id != make_query("u", "train", "Why?", "{}").query_id
    assert one.prompt == "Question: Why?\nAnswer: "


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_different_pairs_of_task_and_question_have_different_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Plain concatenation would confuse ("ab", "c") with ("a", "bc")."""
    assert (query_id(*one) == query_id(*other)) == (one == other)


def test_a_question_may_hold_braces() -> None:
    assert make_query("t", "train", "What is {x}?", "{}").prompt == "Question: What is {x}?\nAnswer: "


def test_tiny_world_gives_the_sizes_asked_for_and_no_question_twice() -> None:
    queries = list(TASKS["tiny_world"].load(OPTIONS))
    assert [q.split for q in queries] == ["train"] * 30 + ["validation"] * 5 + ["test"] * 10
    assert len({q.query_id for q in queries}) == 45
    assert list(TASKS["tiny_world"].load(OPTIONS)) == queries
    assert list(TASKS["tiny_world"].load({**OPTIONS, "seed": 1})) != queries


def test_tiny_world_accepts_its_own_answers_and_refuses_its_rivals() -> None:
    task = TASKS["tiny_world"]
    rivals = 0
    for item in draw_unique(seed=3, num_items=500):
        assert task.grade(f" {item.answer}\n", {"answer": item.answer}, {})
        assert not task.grade(f"{item.answer}.", {"answer": item.answer}, {})
        if item.rival is not None:
            rivals += 1
            assert item.rival_share in RIVAL_SHARE.values()
            assert not task.grade(item.rival, {"answer": item.answer}, {})
    assert rivals > 0


def test_every_tiny_reference_is_json_with_an_answer() -> None:
    for query in TASKS["tiny_world"].load(OPTIONS):
        assert json.loads(query.reference).keys() == {"answer", "skill", "tier"}


@given(st.text())
def test_no_completion_makes_the_tiny_grader_raise(completion: str) -> None:
    assert TASKS["tiny_world"].grade(completion, {"answer": "12"}, {}) == (completion.strip() == "12")
