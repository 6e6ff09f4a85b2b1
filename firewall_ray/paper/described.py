"""A cluster's nodes for the dry run: those that run, those of Ray's launcher file, or described in a YAML of a few lines.

nodes:
  - {num_cpus: 96, num_gpus: 8, accelerator_types: [A100], gpu_memory_gb: 80, disk_gb: 1000, namespaces: true}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from firewall_ray.cluster.room import ACCELERATOR
from firewall_ray.config.base import Positive, Strict
from firewall_ray.config.problems import problem
from firewall_ray.config.strict_yaml import load_yaml
from firewall_ray.errors import ConfigError

LAUNCHER_FILE = "ray_cluster.yaml"


class NodeConfig(Strict):
    """Nodes of one kind. What is None is not known."""

    count: Positive = 1
    num_cpus: float = Field(ge=0)
    num_gpus: float = Field(0, ge=0)
    accelerator_types: list[str] = Field([], description="As Ray names them, such as A100; further ones given by hand.")
    gpu_memory_gb: float | None = Field(None, gt=0, description="Of one GPU, in 10^9 bytes.")
    disk_gb: float | None = Field(None, gt=0, description="Free, for the models' files.")
    namespaces: bool | None = Field(None, description="Whether a worker there may make namespaces, as the sandbox does.")
    resources: dict[str, float] = Field({}, description="Custom ones.")


class ClusterConfig(Strict):
    nodes: list[NodeConfig] = Field(min_length=1)


@dataclass(frozen=True)
class Cluster:
    """name: in the checklist. resources: of each node, as Ray lists them. kinds: what else a description says of them."""

    name: str
    resources: Sequence[Mapping[str, float]]
    kinds: Sequence[NodeConfig] = ()
    runs: bool = False


def running_cluster() -> Cluster:
    """The one that this driver has joined."""
    import ray

    return Cluster("the running Ray", [node["Resources"] for node in ray.nodes() if node["Alive"]], runs=True)


def described_cluster(path: str) -> Cluster:
    """Of a file in the form above, or of Ray's launcher, each node type as often as its max_workers allows.

    Raises ConfigError naming the field that is wrong.
    """
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"--cluster {path}: no YAML that can be read: {e}. {_FORM}") from e
    if isinstance(content, dict) and "available_node_types" in content:
        types = content["available_node_types"].values()
        found = [dict(each.get("resources", {})) for each in types for _ in range(each.get("max_workers", 1))]
        return Cluster(path, found)
    try:
        kinds = ClusterConfig.model_validate(content).nodes
    except ValidationError as e:
        lines = [problem(ClusterConfig, error) for error in e.errors()]
        raise ConfigError("\n".join([f"--cluster {path}:", *lines, _FORM])) from e
    return Cluster(path, [_resources(kind) for kind in kinds for _ in range(kind.count)], kinds)


def _resources(kind: NodeConfig) -> dict[str, float]:
    types = {f"{ACCELERATOR}{name}": 1.0 for name in kind.accelerator_types}
    return {"CPU": kind.num_cpus, "GPU": kind.num_gpus, **types, **kind.resources}


_FORM = "It looks like this: nodes: [{num_cpus: 96, num_gpus: 8, accelerator_types: [A100], gpu_memory_gb: 80}]"
