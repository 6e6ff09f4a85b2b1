"""Where an engine lands: the resources that Ray reserves for one sampling actor.

Runs in the driver. One GPU or a CPU engine is a plain actor; an engine over several GPUs gets a placement group whose
first bundle the actor takes and whose bundles vLLM's own Ray workers fill.
"""

from functools import partial
from typing import Any, Literal

from firewall_ray.cluster.groups import ActorGroups, release_groups
from firewall_ray.cluster.room import accelerator
from firewall_ray.config.models import ModelConfig, VllmModelConfig


def engine_bundles(model: VllmModelConfig) -> list[dict[str, float]]:
    """One bundle a GPU: tensor_parallel_size * pipeline_parallel_size of them, the first with the actor's own CPUs too."""
    bundle: dict[str, float] = {"GPU": 1.0, "CPU": 1.0, **model.node_resources, **accelerator(model.accelerator_type)}
    num_gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    bundles = [dict(bundle) for _ in range(num_gpus)]
    bundles[0]["CPU"] += model.num_cpus
    return bundles


def placement_strategy(model: VllmModelConfig) -> Literal["STRICT_PACK", "PACK"]:
    """Tensor parallelism talks at every layer, so its GPUs must be on one node; pipeline stages may be on several."""
    return "STRICT_PACK" if model.pipeline_parallel_size == 1 else "PACK"


def engine_resources(key: str, model: ModelConfig) -> dict[str, Any]:
    """The keyword arguments of `Dataset.map_batches` that place this model's actors."""
    group = {"resources": model.node_resources} if model.node_resources else {}
    if not isinstance(model, VllmModelConfig) or model.device == "cpu":
        return {"num_cpus": model.num_cpus, **group}
    if model.tensor_parallel_size * model.pipeline_parallel_size == 1:
        # The actor's process is the GPU's worker as well, so it takes the GPU and needs no group.
        kind = {} if model.accelerator_type is None else {"accelerator_type": model.accelerator_type}
        return {"num_gpus": 1, "num_cpus": model.num_cpus, **kind, **group}

    groups = ActorGroups(key)
    scheduling = partial(groups.remote_args, engine_bundles(model), placement_strategy(model))
    # No GPU for the actor itself: vLLM's workers take one each, from the bundles of its group, and no CPU.
    return {"num_gpus": 0, "num_cpus": model.num_cpus, "ray_remote_args_fn": scheduling}


def release_placement_groups(key: str) -> None:
    """Give the GPUs of this model's engines back, those of no other model."""
    release_groups(key)
