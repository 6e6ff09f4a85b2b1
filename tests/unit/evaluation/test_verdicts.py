"""What queries are blocked for, on five test queries worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import grade, write

from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.inputs import LabelledQueries
from firewall_ray.evaluation.verdicts import read_verdicts, verdict_sections, warning
from firewall_ray.store import joins
from firewall_ray.store.layout import ArtifactStore

SHORT = {"r": "right", "w": "wrong", "n": "no_answer", "t": "truncated"}
# By query: task, and the two samples of the weak and of the strong model. b, d and e are solved by neither.
QUERIES = {
    "a": ("sums", "rw", "rr"),
    "b": ("sums", "ww", "tt"),
    "c": ("facts", "wn", "rt"),
    "d": ("facts", "wn", "ww"),
    "e": ("facts", "ww", "ww"),
}


def labelled(names: str = "abcde") -> LabelledQueries:
    def rates(column: int) -> Any:
        return np.array([QUERIES[name][column].count("r") / 2 for name in names])

    tasks = np.array([QUERIES[name][0] for name in names])
    return LabelledQueries(list(names), [f"{name}?" for name in names], tasks, rates(1), rates(2), {})


def write_grades(root: Path, names: str = "ecxabd") -> ArtifactStore:
    """In another order, with a query that has no label."""
    store = ArtifactStore(str(root))
    for column, model in ((1, "weak"), (2, "strong")):
        letters = {name: QUERIES.get(name, ("", "tt", "tt"))[column] for name in names}
        rows = [grade(name, of, verdicts=[SHORT[letter] for letter in of]) for name, of in letters.items()]
        write(store.grades(model), rows)
    return store


def sections(root: Path) -> dict[str, Any]:
    store, queries = write_grades(root), labelled()
    return verdict_sections(queries, {model: read_verdicts(store.grades(model), queries.query_ids) for model in ("weak", "strong")})


def test_the_shares_are_as_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "BUCKET_ROWS", 2)  # in three buckets
    found = sections(tmp_path)
    assert found["verdicts"]["weak"] == {
        "all": {"right": 0.1, "wrong": 0.7, "no_answer": 0.2, "truncated": 0.0},  # r; wwwwwww; nn; of 10
        "sums": {"right": 0.25, "wrong": 0.75, "no_answer": 0.0, "truncated": 0.0},
        "facts": {"right": 0.0, "wrong": pytest.approx(4 / 6), "no_answer": pytest.approx(2 / 6), "truncated": 0.0},
    }
    assert found["verdicts"]["strong"]["all"] == {"right": 0.3, "wrong": 0.4, "no_answer": 0.0, "truncated": 0.3}
    assert found["blocked"] == {
        "all": {  # b, d, e: of 12 samples tt are cut off and n has no answer
            "num_queries": 3,
            "share_of_queries": 0.6,
            "wrong": 0.75,
            "no_answer": pytest.approx(1 / 12),
            "truncated": pytest.approx(1 / 6),
            "models": {
                "weak": {"wrong": pytest.approx(5 / 6), "no_answer": pytest.approx(1 / 6), "truncated": 0.0},
                "strong": {"wrong": pytest.approx(4 / 6), "no_answer": 0.0, "truncated": pytest.approx(2 / 6)},
            },
        },
        "sums": {
            "num_queries": 1,
            "share_of_queries": 0.5,
            "wrong": 0.5,
            "no_answer": 0.0,
            "truncated": 0.5,
            "models": {
                "weak": {"wrong": 1.0, "no_answer": 0.0, "truncated": 0.0},
                "strong": {"wrong": 0.0, "no_answer": 0.0, "truncated": 1.0},
            },
        },
        "facts": {
            "num_queries": 2,
            "share_of_queries": pytest.approx(2 / 3),
            "wrong": 0.875,
            "no_answer": 0.125,
            "truncated": 0.0,
            "models": {
                "weak": {"wrong": 0.75, "no_answer": 0.25, "truncated": 0.0},
                "strong": {"wrong": 1.0, "no_answer": 0.0, "truncated": 0.0},
            },
        },
    }


def test_the_warning_names_each_task_where_more_than_a_tenth_are_artefacts(tmp_path: Path) -> None:
    found = sections(tmp_path)
    words = warning(found)
    assert words is not None
    assert "sums (1 queries): 50% were cut off by the limit of tokens, 0% hold no answer" in words
    assert "facts (2 queries): 0% were cut off by the limit of tokens, 12% hold no answer" in words
    found["blocked"]["sums"] |= {"truncated": 0.1, "wrong": 0.9}  # not more than a tenth
    words = warning(found)
    assert words is not None
    assert "sums" not in words
    found["blocked"]["facts"] |= {"no_answer": float("nan")}  # of no such queries
    assert warning(found) is None


def test_what_has_no_verdict_counts_nowhere(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    write(store.grades("weak"), [grade("a", "10"), grade("b", "01", verdicts=["wrong", "right"]), grade("c", None, None, "died")])
    assert read_verdicts(store.grades("weak"), ["c", "b", "a", "z"]).tolist() == [[0] * 4, [1, 1, 0, 0], [0] * 4, [0] * 4]


def test_a_query_that_was_graded_twice_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    write(store.grades("weak"), [grade("a", "1")] * 2)
    with pytest.raises(ArtifactError, match="query_id 'a' comes more than once"):
        read_verdicts(store.grades("weak"), ["a"])
