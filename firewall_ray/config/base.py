"""What the sections of the run's configuration are made of."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# `schemas.LABEL_DESIGNS` once more, since a type checker needs them written out; a test keeps both alike.
LabelDesign = Literal[
    "hard_label", "win_rate", "hard_block", "hard_block_greedy", "soft_block", "weak_pass_rate", "strong_pass_rate"
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]  # becomes a folder's name
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Hidden:
    """Marks the type of a field where a secret may stand, if only by mistake: no message repeats what was given for it."""


HIDDEN = Hidden()


class Strict(BaseModel):
    # extra: a misspelt key would else be a default in silence.
    # frozen: a config is handed to many, none of whom may change it for the others.
    # hide_input_in_errors: pydantic's own message repeats the input, and it is the cause of our errors in a traceback.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)


class ReplicasConfig(Strict):
    """Size of the actor pool. min = max is a fixed pool; otherwise Ray Data scales it with the queue."""

    min: Positive = Field(1, description="Engines to start with.")
    max: Positive = Field(1, description="Engines at most: GPUs available / (tensor_parallel_size * pipeline_parallel_size).")

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicasConfig":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class ActorsConfig(Strict):
    """A pool of actors that hold one torch model each."""

    batch_size: Positive = Field(64, description="Texts in one forward pass, sorted by length so that little is padding.")
    replicas: ReplicasConfig = ReplicasConfig()
    device: Literal["gpu", "cpu"] = "gpu"
    num_cpus: float = Field(1, gt=0, description="CPUs, and torch threads, of an actor.")

    @property
    def torch_device(self) -> str:
        """As torch names it."""
        # Without a number: Ray shows a process only the GPUs that it was given.
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def torch_threads(self) -> int | None:
        """Of an actor; None leaves them, on a GPU."""
        return max(1, int(self.num_cpus)) if self.device == "cpu" else None


class NodeGroupConfig(Strict):
    """What may be kept to a group of nodes: those with a custom resource, which their node type in ray_cluster.yaml names."""

    node_resource: str | None = Field(
        None, description="Custom resource of the nodes for its actors, each of which takes a thousandth of it. None: any node."
    )

    @property
    def node_resources(self) -> dict[str, float]:
        """What every actor reserves beside CPUs and GPUs."""
        # A node has 1 of it (ray_cluster.yaml): it says where an actor may run, and a thousand fit.
        return {} if self.node_resource is None else {self.node_resource: 0.001}


class PairConfig(Strict):
    weak: Name = Field("weak", description="Key in `models` of the cheap model.")
    strong: Name = Field("strong", description="Key in `models` of the strong model.")


class BackboneConfig(Strict):
    """The router's network under its one-logit head: a checkpoint, or a small one made from scratch."""

    path: str | None = Field(
        "microsoft/deberta-v3-large", description="Hub id or folder of any AutoModelForSequenceClassification backbone."
    )
    tokenizer: str | None = Field(None, description="Hub id or folder. None: the backbone's own.")
    architecture: Literal["deberta", "llama"] = Field(
        "deberta", description="From scratch only (path: null), like the four below: DeBERTa-v2, or a causal Llama."
    )
    hidden_size: Positive = 128
    num_layers: Positive = 2
    num_heads: Positive = 4
    intermediate_size: Positive = 512

    @model_validator(mode="after")
    def _scratch_needs_a_tokenizer(self) -> "BackboneConfig":
        if self.path is None and self.tokenizer is None:
            raise ValueError("path: null makes the network from scratch, and then `tokenizer` must name a tokenizer")
        return self
