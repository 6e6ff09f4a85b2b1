"""Where engines land, as numbers; on real nodes in tests/cluster/."""

import pytest

from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.engines.placement import engine_bundles, engine_resources
from firewall_ray.engines.vllm import engine_args


def model(**settings: object) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": "m", **settings})


@pytest.mark.parametrize(("tensor", "pipeline", "num_gpus"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (4, 2, 8)])
def test_a_group_has_one_bundle_a_gpu_and_the_first_holds_the_actor(tensor: int, pipeline: int, num_gpus: int) -> None:
    bundles = engine_bundles(model(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, num_cpus=2))
    assert sum(bundle["GPU"] for bundle in bundles) == len(bundles) == num_gpus
    assert [bundle["CPU"] for bundle in bundles] == [3.0] + [1.0] * (num_gpus - 1)


def test_an_accelerator_type_is_asked_of_every_bundle() -> None:
    bundles = engine_bundles(model(tensor_parallel_size=2, accelerator_type="A100-80G"))
    assert all(bundle["accelerator_type:A100-80G"] == 0.001 for bundle in bundles)


def test_one_gpu_or_cpu_engines_are_plain_actors() -> None:
    assert engine_resources("weak", model()) == {"num_gpus": 1, "num_cpus": 1}
    assert engine_resources("weak", model(accelerator_type="L4")) == {"num_gpus": 1, "num_cpus": 1, "accelerator_type": "L4"}
    assert engine_resources("weak", model(device="cpu", num_cpus=2)) == {"num_cpus": 2}
    remote = OpenAIModelConfig(engine="openai", base_url="http://x/v1", model="y")
    assert engine_resources("strong", remote) == {"num_cpus": 0.1}


def test_every_engine_and_bundle_asks_for_its_node_group() -> None:
    assert engine_resources("weak", model(device="cpu", node_resource="spot"))["resources"] == {"spot": 0.001}
    assert engine_resources("weak", model(node_resource="spot"))["resources"] == {"spot": 0.001}
    remote = OpenAIModelConfig(engine="openai", base_url="http://x/v1", model="y", node_resource="outside")
    assert engine_resources("strong", remote)["resources"] == {"outside": 0.001}
    assert [bundle["spot"] for bundle in engine_bundles(model(tensor_parallel_size=4, node_resource="spot"))] == [0.001] * 4


def test_several_gpus_place_the_actor_through_a_group_of_its_own() -> None:
    resources = engine_resources("strong", model(tensor_parallel_size=8))
    assert resources["num_gpus"] == 0  # the group's bundles hold the GPUs, for vLLM's own workers
    assert callable(resources["ray_remote_args_fn"])


def test_vllm_gets_what_the_config_says_and_engine_kwargs_win() -> None:
    args = engine_args(
        model(tensor_parallel_size=8, max_model_len=4096, engine_kwargs={"max_num_seqs": 7, "quantization": "fp8"}), 3
    )
    assert (args["tensor_parallel_size"], args["max_model_len"], args["seed"]) == (8, 4096, 3)
    assert (args["max_num_seqs"], args["quantization"], args["distributed_executor_backend"]) == (7, "fp8", "ray")
    assert "gpu_memory_utilization" not in engine_args(model(device="cpu"), 0)
