"""What an engine takes of the cluster, for `cluster/room.py` to look whether it is there. Runs in the driver."""

from firewall_ray.cluster import room
from firewall_ray.cluster.room import Need, Resources
from firewall_ray.config.models import ModelConfig, VllmModelConfig
from firewall_ray.engines.placement import engine_bundles, placement_strategy


def check_room(key: str, model: ModelConfig) -> None:
    """Raises ConfigError where an engine fits on no nodes, were they idle; where an autoscaler may bring some, only warns."""
    room.check_room(engine_need(key, model))


def engine_need(key: str, model: ModelConfig) -> Need:
    """Of the first engine: with it sampling begins."""
    fields = ["num_cpus", "node_resource"]
    if isinstance(model, VllmModelConfig) and model.device == "gpu":
        fields += ["tensor_parallel_size", "pipeline_parallel_size", "accelerator_type", "device"]
    return Need(f"models.{key}: an engine", engine_parts(model), [f"models.{key}.{field}" for field in fields])


def engine_parts(model: ModelConfig) -> list[Resources]:
    """What an engine takes: parts that may lie on different nodes, each whole on one."""
    if not isinstance(model, VllmModelConfig) or model.device == "cpu":
        return [{"CPU": model.num_cpus, **model.node_resources}]
    bundles = engine_bundles(model)
    if len(bundles) == 1:  # a plain actor, whose process is the GPU's worker as well
        return [{**bundles[0], "CPU": model.num_cpus}]
    if placement_strategy(model) == "PACK":
        return bundles
    # STRICT_PACK puts all bundles onto one node, so they are one part.
    return [{name: sum(bundle[name] for bundle in bundles) for name in bundles[0]}]
