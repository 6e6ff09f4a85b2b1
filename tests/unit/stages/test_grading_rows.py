"""The verdicts of one batch, as a worker gives them."""

from typing import Any

import pyarrow as pa
import pytest
from handmade import query, sample

from firewall_ray.schemas import GRADES, SAMPLES
from firewall_ray.stages.grading_rows import grade_batch
from firewall_ray.tasks.tiny_world import TinyWorld


class Recording(TinyWorld):
    """Right: `yes`. Nothing to read: `hm`."""

    def __init__(self) -> None:
        self.graded: list[str] = []

    def grade(self, completion: str, reference: Any, options: Any) -> bool:
        self.graded.append(completion)
        return completion == "yes"

    def has_answer(self, completion: str, reference: Any, options: Any) -> bool:
        return completion != "hm"


def verdicts(row: dict[str, Any], task: TinyWorld | None = None) -> tuple[list[str], str]:
    """Of the samples, and of the greedy answer; checked against `correct`."""
    batch = pa.Table.from_pylist([row], schema=SAMPLES)
    graded = grade_batch(batch, pa.Table.from_pylist([query("a")]), "weak", {"tiny_world": {}}, {"tiny_world": task or Recording()})
    assert graded.schema == GRADES
    (found,) = graded.to_pylist()
    assert found["error"] is None
    assert found["correct"] == [verdict == "right" for verdict in found["verdicts"]]
    assert found["greedy_correct"] == (found["greedy_verdict"] == "right")
    return found["verdicts"], found["greedy_verdict"]


def test_a_sample_is_right_wrong_without_an_answer_or_cut_off() -> None:
    row = sample("a", ["yes", "no", "hm", "no", "hm"], "hm", finish_reasons=["stop", "stop", "stop", "length", "length"])
    assert verdicts(row)[0] == ["right", "wrong", "no_answer", "truncated", "truncated"]


def test_what_was_cut_off_and_is_right_counts_as_right() -> None:
    assert verdicts(sample("a", ["yes"], finish_reasons=["length"])) == (["right"], "right")


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (None, ["wrong", "wrong"]),
        ([], ["wrong", "wrong"]),
        (["length"], ["truncated", "wrong"]),
        ([None, "length"], ["wrong", "truncated"]),
        (["eos", "length", "length"], ["wrong", "truncated"]),
    ],
)
def test_samples_of_others_are_cut_off_only_where_they_say_so(reasons: Any, expected: list[str]) -> None:
    assert verdicts(sample("a", ["no", "not"], finish_reasons=reasons))[0] == expected


def test_the_greedy_answer_ended_as_it_says_and_else_as_a_sample_with_the_same_text() -> None:
    cut = {"finish_reasons": ["length"]}
    assert verdicts(sample("a", ["no"], "no", **cut))[1] == "truncated"
    assert verdicts(sample("a", ["no"], "not", **cut))[1] == "wrong"
    assert verdicts(sample("a", ["no"], "no", **cut, greedy_finish_reason="stop"))[1] == "wrong"
    assert verdicts(sample("a", ["no"], "not", greedy_finish_reason="length"))[1] == "truncated"


def test_equal_texts_of_a_query_are_graded_once() -> None:
    task = Recording()
    row = sample("a", ["no", "yes", "no", "hm", "hm"], "hm", finish_reasons=["stop", "eos", None, "length", "length"])
    assert verdicts(row, task) == (["wrong", "right", "wrong", "truncated", "truncated"], "truncated")
    assert sorted(task.graded) == ["hm", "no", "yes"]
