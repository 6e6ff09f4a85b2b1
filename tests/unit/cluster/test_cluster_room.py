"""What a cluster has no room for is refused before anything begins, or waited for in words."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from firewall_ray.cluster import room
from firewall_ray.cluster.room import Need, check_room, said_while_waiting, shortage
from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.stages.needs import check_cluster, training_need
from firewall_ray.store.layout import ArtifactStore

NEED = Need("models.strong: an engine", [{"GPU": 4.0, "CPU": 5.0}], ["models.strong.device"])


class Nodes:
    """As Ray lists them: of each, what there is and what is free. With A100s, as Ray itself names both kinds."""

    def __init__(self) -> None:
        self.total: list[dict[str, float]] = []
        self.free: list[dict[str, float]] = []
        self.labels: dict[str, str] = {}

    def add(self, total: dict[str, float], free: dict[str, float] | None = None) -> None:
        self.total.append(total)
        self.free.append(total if free is None else free)

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeID": str(number), "Resources": total, "Labels": self.labels}
            for number, total in enumerate(self.total)
        ]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    nodes = Nodes()
    monkeypatch.setattr(ray, "nodes", nodes.listed)
    # A node without anything free is not in Ray's table at all.
    monkeypatch.setattr(room, "available_resources_per_node", lambda: {str(n): free for n, free in enumerate(nodes.free) if free})
    return nodes


def run_config(root: Path, **sections: Any) -> RunConfig:
    model = {"path": "m", "device": "cpu"}
    raw = {"root": str(root), "queries": {"tasks": {"tiny_world": {}}}, "models": {"weak": model, "strong": model}}
    return RunConfig.model_validate({**raw, **sections})


def test_room_is_what_is_free_not_what_exists(nodes: Nodes) -> None:
    nodes.add({"GPU": 8.0, "CPU": 96.0}, {"GPU": 2.0, "CPU": 80.0})
    nodes.add({"GPU": 8.0, "CPU": 96.0}, {})
    check_room(NEED)  # others will end
    assert shortage(NEED) == (
        "models.strong: an engine takes 1 x (4 GPU, 5 CPU), each on one node. Free now: 1 x (2 GPU, 80 CPU); "
        "in all: 2 x (8 GPU, 96 CPU)."
    )
    nodes.free[1] = {"GPU": 4.0, "CPU": 5.0}
    assert shortage(NEED) is None


def test_two_halves_on_two_nodes_are_no_room_for_a_whole(nodes: Nodes) -> None:
    nodes.add({"GPU": 4.0, "CPU": 96.0}, {"GPU": 2.0, "CPU": 96.0})
    nodes.add({"GPU": 4.0, "CPU": 96.0}, {"GPU": 2.0, "CPU": 96.0})
    assert "Free now: 2 x (2 GPU, 96 CPU)" in str(shortage(NEED))


def test_a_wait_is_said_with_what_is_waited_for_again_and_until_it_ends(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "FIRST_WORD_AFTER_S", 0.01)
    monkeypatch.setattr(room, "SAY_EVERY_S", 0.05)
    nodes.add({"GPU": 8.0, "CPU": 96.0}, {"CPU": 96.0})
    begun = threading.Event()
    with caplog.at_level(logging.INFO, logger="firewall_ray"), said_while_waiting(NEED, begun.is_set):
        deadline = time.monotonic() + 20
        while caplog.text.count("waiting for room") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        begun.set()
        while "models.strong: an engine began after" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "takes 1 x (4 GPU, 5 CPU), each on one node. Free now: 1 x (0 GPU, 96 CPU); in all: 1 x (8 GPU, 96 CPU)." in caplog.text


def test_a_beginning_that_the_body_sees_first_is_said_too(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "FIRST_WORD_AFTER_S", 0.3)
    nodes.add({"GPU": 8.0, "CPU": 96.0}, {"CPU": 96.0})
    begun = threading.Event()
    with caplog.at_level(logging.INFO, logger="firewall_ray"):
        with said_while_waiting(NEED, begun.is_set):
            deadline = time.monotonic() + 20
            while "waiting for room" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            begun.set()  # and the body ends before the next look
        assert "models.strong: an engine began after" in caplog.text


def test_what_begins_at_once_is_not_talked_about(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "FIRST_WORD_AFTER_S", 0.01)
    with caplog.at_level(logging.INFO, logger="firewall_ray"), said_while_waiting(NEED, lambda: True):
        time.sleep(0.1)
    assert caplog.text == ""


def test_a_watch_that_cannot_see_does_not_disturb_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FIRST_WORD_AFTER_S", 0.01)

    def broken() -> bool:
        raise ConnectionError("the head is gone")

    with said_while_waiting(NEED, broken):
        time.sleep(0.1)


# Before sampling starts -----------------------------------------------------------------------------------------------

GPU_NODE = {"GPU": 8.0, "CPU": 96.0, "accelerator_type:A100": 1.0}


def test_a_type_of_gpu_that_training_asks_for_and_no_node_has_is_refused_before_sampling(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(GPU_NODE)
    config = run_config(tmp_path, router={"accelerator_type": "A100-80G", "num_workers": 8})
    with pytest.raises(ConfigError) as caught:
        check_cluster(config, ArtifactStore(config.root))
    said = str(caught.value)
    assert said.startswith("router: training takes 8 x (1 CPU, 1 GPU, 0.001 accelerator_type:A100-80G), each on one node")
    assert "Accelerator types of its nodes: A100." in said
    assert """ray start --resources='{"accelerator_type:A100-80G": 1}'""" in said
    assert "Where all of them have that memory, ask for A100 (router.accelerator_type)." in said
    nodes.total[0] = {**GPU_NODE, "accelerator_type:A100-80G": 1.0}
    check_cluster(config, ArtifactStore(config.root))


def test_scoring_on_gpus_is_refused_before_sampling_where_there_are_none(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add({"CPU": 8.0})
    config = run_config(tmp_path, router={"device": "cpu"}, scoring={"device": "gpu"})
    with pytest.raises(ConfigError, match=r"^scoring: an actor takes 1 x \(1 CPU, 1 GPU\).*scoring\.num_cpus, scoring\.device"):
        check_cluster(config, ArtifactStore(config.root))
    check_cluster(run_config(tmp_path, router={"device": "cpu"}, scoring={"device": "cpu"}), ArtifactStore(config.root))


def test_only_stages_with_something_to_do_need_room(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add({"CPU": 8.0})
    config = run_config(tmp_path, router={"device": "gpu", "designs": ["soft_block"]}, scoring={"device": "cpu"})
    store = ArtifactStore(config.root)
    for dataset in (store.samples("weak"), store.samples("strong"), store.router("soft_block")):
        with pytest.raises(ConfigError, match="router: training"):
            check_cluster(config, store)
        dataset.begin({})
        dataset.finish({}, {})
    check_cluster(config, store)
    with pytest.raises(ConfigError, match="router: training"):
        check_cluster(config, store, redo={"train_router", "score", "report"})


def test_training_needs_room_for_all_workers_at_once(nodes: Nodes) -> None:
    nodes.add({"GPU": 4.0, "CPU": 32.0}, {"GPU": 1.0, "CPU": 32.0})
    nodes.add({"GPU": 4.0, "CPU": 32.0})
    assert shortage(training_need(RouterConfig(num_workers=5))) is None
    assert "Free now: 1 x (32 CPU, 1 GPU), 1 x (32 CPU, 4 GPU)" in str(shortage(training_need(RouterConfig(num_workers=6))))
    with pytest.raises(ConfigError, match="router: training takes 9 x"):
        check_room(training_need(RouterConfig(num_workers=9)))
