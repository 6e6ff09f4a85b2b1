import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from handmade import make_config, query, write
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray import tasks
from firewall_ray.errors import ArtifactError, ArtifactMissing, TaskError
from firewall_ray.stages.prepare_queries import quotas, read_queries, run_prepare_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import Query
from firewall_ray.tasks.base import make_query
from firewall_ray.tasks.tiny_world import TinyWorld


def prepare(root: Path, sizes: Mapping[str, int] | None = None, **arguments: Any) -> dict[str, Any]:
    sections = {} if sizes is None else {"queries": {"tasks": {"tiny_world": dict(sizes)}}}
    return run_prepare_queries(make_config(str(root), **sections), ArtifactStore(str(root)), **arguments)


def splits(root: Path, limit: int | None = None) -> Counter[str]:
    return Counter(read_queries(ArtifactStore(str(root)), limit).read()["split"].to_pylist())


def test_queries_are_written_as_the_task_yields_them(tmp_path: Path) -> None:
    assert prepare(tmp_path)["queries"] == 70
    rows = read_queries(ArtifactStore(str(tmp_path))).read().to_pylist()
    options = {"seed": 0, "num_train": 40, "num_validation": 10, "num_test": 20}
    assert [tuple(row.values()) for row in rows] == [tuple(query) for query in TinyWorld().load(options)]


def test_a_second_run_is_skipped_until_the_options_change(tmp_path: Path) -> None:
    assert prepare(tmp_path)["action"] == "run"
    assert prepare(tmp_path)["action"] == "skip"
    assert prepare(tmp_path, force=True)["action"] == "run"
    again = prepare(tmp_path, {"num_train": 5, "num_validation": 0, "num_test": 0})
    assert (again["action"], again["queries"]) == ("run", 5)


def test_a_limit_keeps_some_of_every_split_in_both_directions(tmp_path: Path) -> None:
    prepare(tmp_path)
    # 40 + 10 + 20: everyone 1, and of the other 4 by (39, 9, 19) / 67: 2.33, 0.54, 1.13 -> 2, 0, 1 and one for 0.54.
    assert splits(tmp_path, limit=7) == {"train": 3, "validation": 2, "test": 2}
    chosen = read_queries(ArtifactStore(str(tmp_path)), 7).read()
    prepare(tmp_path / "limited", limit=7)
    assert read_queries(ArtifactStore(str(tmp_path / "limited"))).read().equals(chosen)


@given(
    st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "validation", "test"])), st.integers(1, 10_000)),
    st.integers(1, 20_000),
)
def test_quotas_add_up_and_leave_no_group_out(available: dict[Any, int], limit: int) -> None:
    kept = quotas(available, limit)
    assert kept.total() == min(limit, sum(available.values()))
    assert all(0 < kept[group] <= available[group] for group in kept)
    assert len(kept) == min(limit, len(available))
    total = sum(available.values())
    if limit >= len(available) and total:
        # Each share is within 1 for the rounding and 1 for every group's first query of its exact proportion.
        assert all(abs(kept[group] - min(limit, total) * size / total) <= 1 + len(available) for group, size in available.items())


def test_a_question_that_comes_twice_is_named_with_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(TinyWorld):
        def load(self, options: Mapping[str, Any]) -> Iterator[Query]:
            yield make_query(self.name, "train", "One?", "{}")
            yield make_query(self.name, "train", "What is two?", "{}")
            yield make_query(self.name, "test", "What is two?", "{}")

    monkeypatch.setitem(tasks.TASKS, "tiny_world", Twice())
    with pytest.raises(
        TaskError, match=r"tiny_world: the question 'What is two\?' comes twice: query 2 of train and query 1 of test"
    ):
        prepare(tmp_path)
    assert ArtifactStore(str(tmp_path)).queries().state() == "missing"


def test_no_queries_name_the_options(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no queries.*queries\.tasks\.tiny_world\.num_train"):
        prepare(tmp_path, {"num_train": 0, "num_validation": 0, "num_test": 0})
    assert not (tmp_path / "queries").exists()


def test_bad_options_leave_the_queries_of_an_earlier_run_alone(tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(TaskError):
        prepare(tmp_path, {"num_train": 0, "num_validation": 0, "num_test": 0})
    assert splits(tmp_path) == {"train": 40, "validation": 10, "test": 20}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([query("a"), query("b"), query("a")], r"query_id 'a' comes more than once"),
        ([query("a"), query("b", split="dev")], r"query 'b' has the split 'dev'.*'train', 'validation', 'test'"),
        ([query("a"), query("b", reference="eighteen")], r"query b: `reference` must be a JSON object.*eighteen"),
        ([query("a", reference="[18]")], r"query a: `reference` must be a JSON object"),
        ([], "no rows"),
    ],
)
def test_queries_that_others_wrote_are_checked(tmp_path: Path, rows: list[Any], named: str) -> None:
    store = ArtifactStore(str(tmp_path))
    write(store.queries(), rows)
    with pytest.raises(ArtifactError, match=named):
        read_queries(store)


def test_missing_queries_name_the_job_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"python jobs/prepare_queries\.py"):
        read_queries(ArtifactStore(str(tmp_path)))


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    prepare(tmp_path, limit=7)
    manifest = json.loads((tmp_path / "queries" / "_MANIFEST.json").read_text())
    assert manifest["counts"] == {"queries": 7, "tiny_world/train": 3, "tiny_world/validation": 2, "tiny_world/test": 2}
    assert manifest["config"]["queries"]["tasks"]["tiny_world"]["num_train"] == 40
    assert manifest["settings"]["limit"] == 7
