"""Placement groups of engines over several GPUs, made and given back for real; no GPU is needed to ask for one."""

import pytest
import ray
from ray.util.placement_group import placement_group_table

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines.placement import engine_resources, release_placement_groups

pytestmark = pytest.mark.slow


def groups() -> list[dict[str, object]]:
    return [group for group in placement_group_table().values() if group["name"].startswith("firewall-ray/")]


@pytest.mark.parametrize(("tensor", "pipeline", "num_bundles", "strategy"), [(4, 1, 4, "STRICT_PACK"), (8, 2, 16, "PACK")])
def test_every_actor_asks_for_a_group_of_its_own_and_the_job_gives_all_back(
    ray_cluster: None, tensor: int, pipeline: int, num_bundles: int, strategy: str
) -> None:
    model = VllmModelConfig(path="m", tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    scheduling = engine_resources("strong", model)["ray_remote_args_fn"]
    strategies = [scheduling()["scheduling_strategy"] for _ in range(2)]
    assert len({strategy.placement_group.id for strategy in strategies}) == 2
    assert all(strategy.placement_group_capture_child_tasks for strategy in strategies)
    asked = [group for group in groups() if group["state"] != "REMOVED"]
    assert len(asked) == 2
    for group in asked:
        assert group["strategy"] == strategy
        assert [bundle["GPU"] for bundle in group["bundles"].values()] == [1.0] * num_bundles

    # Other models' are left alone, also where one name begins another.
    for other in ("weak", "stro", "strong-3b"):
        release_placement_groups(other)
    assert [group["state"] for group in groups()].count("REMOVED") == len(groups()) - 2
    release_placement_groups("strong")
    assert {group["state"] for group in groups()} <= {"REMOVED"}
    assert ray.cluster_resources().get("GPU", 0) == 0  # what was asked for was never there


def test_finishing_one_model_leaves_the_groups_of_another_whose_name_goes_on(ray_cluster: None) -> None:
    model = VllmModelConfig(path="m", tensor_parallel_size=2)
    for key in ("weak", "weak-3b"):
        engine_resources(key, model)["ray_remote_args_fn"]()
    release_placement_groups("weak")
    assert [str(group["name"]).split("/")[2] for group in groups() if group["state"] != "REMOVED"] == ["weak-3b"]
    release_placement_groups("weak-3b")
    assert {group["state"] for group in groups()} <= {"REMOVED"}
