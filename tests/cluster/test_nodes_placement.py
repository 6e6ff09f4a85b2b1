"""Placement groups of engines over several GPUs, on nodes with as many GPUs as said; no GPU has to exist to be reserved."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from handmade import query, write
from ray.util.placement_group import placement_group_table
from ray_nodes import RayNodes, ray_nodes

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines.placement import engine_resources, release_placement_groups
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """Two nodes of 4 GPUs, as of one node group, and one of 8."""
    with ray_nodes() as nodes:
        nodes.add(num_cpus=16, num_gpus=4, small_nodes=1)
        nodes.add(num_cpus=16, num_gpus=4, small_nodes=1)
        nodes.add(num_cpus=16, num_gpus=8, large_nodes=1)
        yield nodes


def placed(address: str, engines: list[dict[str, Any]], wait_s: float) -> list[dict[str, int] | None]:
    """In a driver: of each engine, how many of its bundles lie on which node, by its number of GPUs and its id; None where its
    group did not come about. All at the same time, and given back.
    """
    ray.init(address=address, log_to_driver=False)
    groups = []
    for engine in engines:
        scheduling = engine_resources("strong", VllmModelConfig.model_validate({"path": "m", **engine}))["ray_remote_args_fn"]
        group = scheduling()["scheduling_strategy"].placement_group
        groups.append(group if group.wait(wait_s) else None)
    gpus = {node["NodeID"]: f"{node['Resources'].get('GPU', 0):g} GPUs, {node['NodeID'][:8]}" for node in ray.nodes()}
    found = []
    for group in groups:
        where = placement_group_table(group)["bundles_to_node_id"].values() if group else None
        found.append(None if where is None else dict(Counter(gpus[node] for node in where)))
    release_placement_groups("strong")
    return found


def test_an_engine_over_several_gpus_has_them_all_on_one_node(nodes: RayNodes) -> None:
    of_four, another, of_eight = nodes.in_driver(
        placed,
        [{"tensor_parallel_size": 4, "node_resource": "small_nodes"}] * 2 + [{"tensor_parallel_size": 8}],
        20.0,
    )
    assert list(of_four.values()) == list(another.values()) == [4]
    assert of_four.keys() != another.keys()  # each fills a node
    assert {name[:6] for name in [*of_four, *another]} == {"4 GPUs"}
    ((where, num_bundles),) = of_eight.items()
    assert (where[:6], num_bundles) == ("8 GPUs", 8)


def test_eight_gpus_of_two_nodes_are_no_room_for_tensor_parallelism_of_eight(nodes: RayNodes) -> None:
    (split,) = nodes.in_driver(placed, [{"tensor_parallel_size": 8, "node_resource": "small_nodes"}], 3.0)
    assert split is None


def test_pipeline_stages_may_lie_on_two_nodes(nodes: RayNodes) -> None:
    engine = {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "node_resource": "small_nodes"}
    (stages,) = nodes.in_driver(placed, [engine], 20.0)
    assert list(stages.values()) == [4, 4]


def groups_held(address: str, ending: str) -> list[int]:
    """In a driver: how many groups are held while three engines live; within half a minute of the end of two of them, which a pool
    that shrinks let go of (`dropped`) or which died for good (`killed`); and after the release at the end.
    """

    class Idle:  # in here, so that it is pickled whole: workers do not import the tests' modules
        def answer(self) -> str:
            return "here"

    ray.init(address=address, log_to_driver=False)
    model = VllmModelConfig(path="m", tensor_parallel_size=2)
    remote_args = engine_resources("strong", model)["ray_remote_args_fn"]
    # As Ray Data asks for them: an actor is started again as often as it dies, where it is not given up.
    starts = {
        "num_gpus": 0,
        "num_cpus": 1,
        "max_restarts": 0 if ending == "killed" else -1,
        "max_task_retries": -1 if ending != "killed" else 0,
    }
    handles = [ray.remote(Idle).options(**starts, **remote_args()).remote() for _ in range(3)]
    ray.get([handle.answer.remote() for handle in handles])

    def held() -> int:
        return sum(group["state"] == "CREATED" for group in placement_group_table().values())

    def held_after(expected: int) -> int:
        deadline = time.monotonic() + 30
        while held() != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        return held()

    counts = [held()]
    for _ in range(2):
        handle = handles.pop()
        if ending == "killed":
            ray.kill(handle)
        del handle
    counts.append(held_after(1))
    release_placement_groups("strong")
    return [*counts, held_after(0)]


@pytest.mark.parametrize("ending", ["dropped", "killed"])
def test_an_engine_that_a_pool_gives_up_frees_its_gpus_at_once(nodes: RayNodes, ending: str) -> None:
    assert nodes.in_driver(groups_held, ending) == [3, 1, 0]


def pool_without_a_release(address: str) -> tuple[int, int]:
    """In a driver: how many groups Ray Data's own pool of two engines had in all, and how many are held a minute later."""

    class Passes:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    ray.init(address=address, log_to_driver=False)
    placed = engine_resources("strong", VllmModelConfig(path="m", tensor_parallel_size=2))
    rows = ray.data.range(64, override_num_blocks=8).map_batches(
        Passes, batch_size=8, compute=ray.data.ActorPoolStrategy(size=2), max_restarts=-1, **placed
    )
    assert rows.count() == 64  # an iterator would keep its actors for as long as the dataset lives
    deadline = time.monotonic() + 60
    while True:
        groups = placement_group_table().values()
        held = sum(group["state"] != "REMOVED" for group in groups)
        if not held or time.monotonic() > deadline:
            return len(groups), held
        time.sleep(0.2)


def test_groups_of_a_pool_that_ray_data_ran_go_with_its_actors(nodes: RayNodes) -> None:
    before = nodes.in_driver(num_groups)
    num_made, num_held = nodes.in_driver(pool_without_a_release)
    assert num_made - before >= 2
    assert num_held == 0


def num_groups(address: str) -> int:
    ray.init(address=address, log_to_driver=False)
    return len(placement_group_table())


def test_an_engine_that_no_node_could_hold_ends_the_job_before_it_begins(nodes: RayNodes, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "run"))
    write(store.queries(), [query("q1")])
    strong = {"path": "quickstart/models/strong", "tensor_parallel_size": 8, "node_resource": "small_nodes"}
    config = {
        "root": store.base,
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": {"path": "quickstart/models/weak"}, "strong": strong},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    log = tmp_path / "log"
    job = nodes.job("sample", "--config", str(tmp_path / "config.yaml"), log=log)
    try:
        assert job.wait(120) == 2
    except subprocess.TimeoutExpired:
        job.kill()
        raise
    said = " ".join(log.read_text().split())
    assert "models.strong: an engine takes 1 x (8 GPU, 9 CPU, 0.008 small_nodes), each on one node" in said
    assert "2 x (4 GPU, 16 CPU, 1 small_nodes)" in said
    assert "1 x (8 GPU, 16 CPU, 0 small_nodes)" in said
    assert "tensor_parallel_size" in said.partition("start nodes that hold it")[2]
    assert store.samples("strong").state() == store.samples("weak").state() == "missing"
