"""Whether the cluster could ever hold an engine: where it cannot, Ray would wait for ever without a word.

Runs in the driver.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import ray

from firewall_ray.config import ModelConfig, VllmModelConfig
from firewall_ray.engines.placement import engine_bundles, placement_strategy
from firewall_ray.errors import ConfigError

NODE_GROUP = "ray.io/node-group"  # Ray's label of nodes that were started by `ray up` or KubeRay

Resources = dict[str, float]

logger = logging.getLogger(__name__)


def check_room(key: str, model: ModelConfig) -> None:
    """Raises ConfigError where an engine fits on no nodes, were they idle; where an autoscaler may bring some, only warns."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    parts = engine_parts(model)
    if fits(parts, [node["Resources"] for node in nodes]):
        return
    names = list(dict.fromkeys(name for part in parts for name in part))
    there = [{name: node["Resources"].get(name, 0) for name in names} for node in nodes]
    some = _listed(node for node in there if any(node.values())) or "without any of it"
    problem = f"models.{key}: an engine takes {_listed(parts)}, each on one node, and the cluster's nodes are {some}."
    if any(NODE_GROUP in node["Labels"] for node in nodes):
        logger.warning("%s Waiting for the autoscaler to start some.", problem)
        return
    fields = ["num_cpus", "node_resource"]
    if isinstance(model, VllmModelConfig) and model.device == "gpu":
        fields += ["tensor_parallel_size", "pipeline_parallel_size", "accelerator_type", "device"]
    raise ConfigError(
        f"{problem} It would wait for ever: start nodes that hold it, or change what it takes (models.{key}: {', '.join(fields)})."
    )


def engine_parts(model: ModelConfig) -> list[Resources]:
    """What an engine takes: parts that may lie on different nodes, each whole on one."""
    if not isinstance(model, VllmModelConfig) or model.device == "cpu":
        return [{"CPU": model.num_cpus, **model.node_resources}]
    bundles = engine_bundles(model)
    if len(bundles) == 1:  # a plain actor, whose process is the GPU's worker as well
        return [{**bundles[0], "CPU": model.num_cpus}]
    if placement_strategy(model) == "PACK":
        return bundles
    return [{name: sum(bundle[name] for bundle in bundles) for name in bundles[0]}]


def fits(parts: Iterable[Resources], nodes: Sequence[Resources]) -> bool:
    """Whether the parts find room when each takes the first node that has some. Exact, as parts are alike but for the first,
    which takes more CPUs.

    >>> fits([{"GPU": 4}, {"GPU": 4}], [{"GPU": 4}, {"GPU": 4}]), fits([{"GPU": 8}], [{"GPU": 4}, {"GPU": 4}])
    (True, False)
    """
    left = [Counter(node) for node in nodes]
    for part in parts:
        node = next((node for node in left if all(node[name] >= amount for name, amount in part.items())), None)
        if node is None:
            return False
        node.subtract(part)
    return True


def _listed(resources: Iterable[Resources]) -> str:
    """For example: 2 x (4 GPU, 96 CPU)."""
    words = [", ".join(f"{amount:g} {name}" for name, amount in each.items()) for each in resources]
    return ", ".join(f"{count} x ({each})" for each, count in Counter(words).items())
