"""The config's section `baselines`: which ones jobs/baselines.py makes, and the models that they read queries and answers with."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from firewall_ray.config_base import Positive, ReplicasConfig, Strict

HybridDesign = Literal["hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans"]
BaselineName = Literal["margin_sampling", "knn", "routellm_mf", HybridDesign]


class ActorsConfig(Strict):
    """A pool of actors that hold one model each."""

    batch_size: Positive = Field(64, description="Texts in one forward pass, sorted by length so that little is padding.")
    replicas: ReplicasConfig = ReplicasConfig()
    device: Literal["gpu", "cpu"] = "gpu"
    num_cpus: float = Field(1, gt=0, description="CPUs, and torch threads, of an actor.")


class EmbeddingConfig(ActorsConfig):
    """What turns a prompt into a vector, for knn and routellm_mf."""

    sentence_transformer: str | None = Field(
        None,
        description="Hub id or folder of a sentence-transformers model, such as sentence-transformers/all-MiniLM-L6-v2; needs "
        "that package. None: the last hidden states of the pair's weak model, averaged over the prompt's tokens.",
    )
    max_length: Positive = Field(512, description="Tokens of a prompt that are read. A sentence-transformers model has its own.")


class KnnConfig(Strict):
    num_neighbours: list[Positive] = Field(
        [5, 10, 20, 40, 80], min_length=1, description="k to choose from; the one with the lowest validation error is kept."
    )


class RoutellmMfConfig(Strict):
    """RouteLLM's own training settings, from its train_matrix_factorization.py."""

    dim: Positive = Field(128, description="Of the models' vectors, and of the projected query.")
    epochs: Positive = Field(100, description="The epoch with the lowest validation loss is kept.")
    batch_size: Positive = 64
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    noise: float = Field(
        0.05, ge=0, description="Standard deviation of the noise on each number of a query's embedding while training."
    )
    seed: int = 0


class BartScoreConfig(ActorsConfig):
    """The quality of a response for Hybrid LLM: BARTScore (Yuan et al. 2021)."""

    path: str | None = Field(
        "facebook/bart-large-cnn",
        description="Hub id or folder of a BART. None: a small one, trained from scratch on the responses of the train split.",
    )
    tokenizer: str | None = Field(None, description="Hub id or folder. None: the BART's own.")
    max_length: Positive = Field(1_024, description="Tokens of a response or reference that are read.")
    max_references: Positive = Field(
        4, description="References of a query that a response is compared with; the nearest counts. Costs as many passes."
    )
    hidden_size: Positive = Field(64, description="From scratch only (path: null), like the five below.")
    num_layers: Positive = 2
    num_heads: Positive = 4
    epochs: Positive = 3
    learning_rate: float = Field(2e-3, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> "BartScoreConfig":
        if self.path is None and self.tokenizer is None:
            raise ValueError("path: null trains a BART from scratch, and then `tokenizer` must name a tokenizer")
        if self.path is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self


class BaselinesConfig(Strict):
    names: list[BaselineName] = Field(
        ["margin_sampling", "knn", "routellm_mf", "hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans"],
        min_length=1,
        description="Each writes scores/<name>/. Those of Hybrid LLM train a router each, with the settings in `router`.",
    )
    embedding: EmbeddingConfig = EmbeddingConfig()
    knn: KnnConfig = KnnConfig()
    routellm_mf: RoutellmMfConfig = RoutellmMfConfig()
    bart_score: BartScoreConfig = BartScoreConfig()

    @field_validator("names")
    @classmethod
    def _each_once(cls, names: list[BaselineName]) -> list[BaselineName]:
        if len(set(names)) < len(names):
            raise ValueError(f"a baseline comes twice in {names}")
        return names
