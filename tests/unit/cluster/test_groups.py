"""When a placement group goes, without a Ray; with one in tests/cluster/ and tests/pipeline/."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from firewall_ray.cluster import groups
from firewall_ray.cluster.groups import ActorGroups, release_groups


class FakeRay:
    """Its table of groups and of actors, by name."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.groups: dict[str, str] = {}
        self.is_away = False

    def placement_group(self, bundles: Any, strategy: str, name: str) -> SimpleNamespace:
        self.groups[name] = "CREATED"
        return SimpleNamespace(name=name)

    def remove(self, group: SimpleNamespace) -> None:
        self.groups[group.name] = "REMOVED"

    def actors(self, job_id: Any) -> dict[str, dict[str, str]]:
        if self.is_away:
            raise ConnectionError("the head is away")
        return {name: {"Name": name, "State": state} for name, state in self.states.items()}

    def table(self) -> dict[str, dict[str, str]]:
        return {name: {"name": name, "state": state} for name, state in self.groups.items()}

    def held(self) -> set[str]:
        return {name for name, state in self.groups.items() if state != "REMOVED"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(groups, "POLL_S", 0.01)
    monkeypatch.setattr(groups, "placement_group", fake.placement_group)
    monkeypatch.setattr(groups, "remove_placement_group", fake.remove)
    monkeypatch.setattr(groups, "placement_group_table", fake.table)
    monkeypatch.setattr(groups, "actors", fake.actors)
    monkeypatch.setattr(ray.util, "get_placement_group", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))
    return fake


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_group_goes_when_its_actor_is_dead_for_good_and_not_while_it_is_started_again(fake: FakeRay) -> None:
    pool = ActorGroups("strong")
    first, second = (str(pool.remote_args([{"GPU": 1.0}], "STRICT_PACK")["name"]) for _ in range(2))
    fake.states = {first: "RESTARTING", second: "ALIVE"}
    time.sleep(0.1)
    assert fake.held() == {first, second}
    fake.states = {first: "DEAD", second: "ALIVE"}
    assert soon(lambda: fake.held() == {second})
    fake.is_away = True
    fake.states = {first: "DEAD", second: "DEAD"}
    time.sleep(0.1)
    assert fake.held() == {second}
    fake.is_away = False
    assert soon(lambda: not fake.held())
    third = str(pool.remote_args([{"GPU": 1.0}], "STRICT_PACK")["name"])  # a replacement, after all were gone
    fake.states[third] = "DEAD"
    assert soon(lambda: not fake.held())


def test_a_group_that_was_asked_for_and_got_no_actor_is_not_kept(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data asks for remote arguments once more than it starts actors, for a look at the memory that one would take."""
    monkeypatch.setattr(groups, "UNCLAIMED_S", 0.2)
    pool = ActorGroups("strong")
    used, spare = (str(pool.remote_args([{"GPU": 1.0}], "STRICT_PACK")["name"]) for _ in range(2))
    fake.states[used] = "PENDING_CREATION"
    assert fake.held() == {used, spare}
    assert soon(lambda: fake.held() == {used})


def test_a_release_takes_the_groups_of_exactly_this_name(fake: FakeRay) -> None:
    names = {key: str(ActorGroups(key).remote_args([{"GPU": 1.0}], "PACK")["name"]) for key in ("weak", "weak-3b", "weak.x", "wea")}
    release_groups("weak")
    assert fake.held() == {names["weak-3b"], names["weak.x"], names["wea"]}
