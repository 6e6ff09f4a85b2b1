import json

import pytest

from firewall_ray.tasks import TASKS
from firewall_ray.tasks.tiny_parts import PARTS
from firewall_ray.tasks.tiny_world import SKILL_WEIGHTS

OPTIONS = {"seed": 0, "num_train": 200, "num_validation": 50, "num_test": 100}


def test_the_parts_share_out_tiny_worlds_skills() -> None:
    skills = [skill for part in PARTS.values() for skill in part]
    assert sorted(skills) == sorted(SKILL_WEIGHTS)  # each in one part


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_its_own_skills_and_the_sizes_asked_for(name: str) -> None:
    queries = list(TASKS[name].load(OPTIONS))
    assert {json.loads(query.reference)["skill"] for query in queries} == PARTS[name]
    assert {query.task for query in queries} == {name}
    splits = [query.split for query in queries]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 200, "validation": 50, "test": 100}
    assert len({query.question for query in queries}) == len(queries)
    assert list(TASKS[name].load(OPTIONS)) == queries
    assert list(TASKS[name].load({**OPTIONS, "seed": 1})) != queries


@pytest.mark.parametrize("name", PARTS)
def test_a_part_asks_what_tiny_world_asks_and_grades_as_it_does(name: str) -> None:
    whole = {query.question: query for query in TASKS["tiny_world"].load({**OPTIONS, "num_train": 2_000})}
    part = [query for query in TASKS[name].load(OPTIONS) if query.question in whole]
    assert len(part) > 100
    for query in part:
        assert query.reference == whole[query.question].reference
        reference = json.loads(query.reference)
        assert TASKS[name].grade(reference["answer"], reference, {})
        assert not TASKS[name].grade(f"{reference['answer']}.", reference, {})


def test_a_part_can_be_for_evaluation_alone() -> None:
    queries = list(TASKS["tiny_letters"].load({**OPTIONS, "num_train": 0, "num_validation": 0}))
    assert {query.split for query in queries} == {"test"}
