"""The config's section `baselines`: which ones jobs/baselines.py makes, and the models that they read queries and answers with."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from firewall_ray.config.base import ActorsConfig, Positive, Strict
from firewall_ray.config.http import BaseUrl, KeyVariable

HybridDesign = Literal["hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans"]
BaselineName = Literal["margin_sampling", "knn", "routellm_mf", "routellm_mf_published", HybridDesign]


class OpenAIEmbeddingConfig(Strict):
    """An OpenAI-compatible /v1/embeddings."""

    base_url: BaseUrl = Field("https://api.openai.com/v1", description="Up to and including /v1.")
    model: str = Field("text-embedding-3-small", description="The id that the server knows it by. RouteLLM's is the default.")
    api_key_env: KeyVariable | None = Field(
        "OPENAI_API_KEY", description="Name of the environment variable with the key. None: no key."
    )
    timeout_s: float = Field(120, gt=0, description="Of one request of `batch_size` prompts.")


class EmbeddingConfig(ActorsConfig):
    """What turns a query into a vector, for knn and both of RouteLLM's."""

    sentence_transformer: str | None = Field(
        None,
        description="Hub id or folder of a sentence-transformers model, such as sentence-transformers/all-MiniLM-L6-v2; needs "
        "that package. None: the last hidden states of the pair's weak model, averaged over the prompt's tokens.",
    )
    openai: OpenAIEmbeddingConfig | None = Field(None, description="An embeddings API instead; RouteLLM's weights want one.")
    text: Literal["question", "prompt"] | None = Field(
        None,
        description="What is embedded. None: the bare question for an embeddings API, as RouteLLM does; else the prompt, which is "
        "what the weak model reads.",
    )
    max_length: Positive = Field(
        512, description="Tokens of a prompt that hidden states are read of. The other sources have their own."
    )

    @property
    def column(self) -> str:
        """Of queries/: `text`, with None decided."""
        return self.text or ("prompt" if self.openai is None else "question")

    @model_validator(mode="after")
    def _one_source(self) -> "EmbeddingConfig":
        if self.openai is not None and self.sentence_transformer is not None:
            raise ValueError("`openai` and `sentence_transformer` are both set; keep one")
        return self


class KnnConfig(Strict):
    num_neighbours: list[Positive] = Field(
        [5, 10, 20, 40, 80], min_length=1, description="k to choose from; the one with the lowest validation error is kept."
    )


class RoutellmPublishedConfig(Strict):
    """The baseline routellm_mf_published: RouteLLM's weights as they are."""

    weights: str = Field(
        "routellm/mf_gpt4_augmented",
        description="Hub id or folder. They were trained on text-embedding-3-small, so baselines.embedding.openai must be set.",
    )
    strong: int = Field(24, ge=0, description="Which of their 64 models is strong. 24: gpt-4-1106-preview.")
    weak: int = Field(36, ge=0, description="And which is weak. 36: mixtral-8x7b-instruct-v0.1, RouteLLM's own pair.")


class RoutellmMfConfig(Strict):
    """The baseline routellm_mf, trained on this run's outcomes with the settings of RouteLLM's train_matrix_factorization.py."""

    dim: Positive = Field(128, description="Of the models' vectors, and of the projected query.")
    epochs: Positive = Field(100, description="The epoch with the lowest validation loss is kept.")
    batch_size: Positive = 64
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    noise: float = Field(
        # The script's `alpha`, which it hands over; 0.05 is only its function's default.
        0.1,
        ge=0,
        description="Standard deviation of the noise on each number of a query's embedding while training.",
    )
    seed: int = 0


class HybridLlmConfig(Strict):
    """Hybrid LLM's own settings, from its Sec. 4.1; whatever else its routers need is as in the section `router`."""

    epochs: Positive = Field(5, description="Of its routers; the one with the lowest validation loss is kept.")
    num_responses: Positive = Field(
        10, description="Samples of each model that are compared, the first ones; all where there are fewer. Costs as many passes."
    )


class BartScoreConfig(ActorsConfig):
    """The quality of a response for Hybrid LLM: BARTScore (Yuan et al. 2021)."""

    path: str | None = Field(
        # BARTScore's own default, as is max_length below.
        "facebook/bart-large-cnn",
        description="Hub id or folder of a BART. None: a small one, trained from scratch on the responses of the train split.",
    )
    tokenizer: str | None = Field(None, description="Hub id or folder. None: the BART's own.")
    max_length: Positive = Field(1_024, description="Tokens of a response or reference that are read.")
    max_references: Positive = Field(
        4, description="References of a query that a response is compared with; the nearest counts. Costs as many passes."
    )
    hidden_size: Positive = Field(64, description="From scratch only (path: null), like the five below.")
    num_layers: Positive = 1
    num_heads: Positive = 4
    epochs: Positive = 3
    learning_rate: float = Field(3e-3, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> "BartScoreConfig":
        if self.path is None and self.tokenizer is None:
            raise ValueError("path: null trains a BART from scratch, and then `tokenizer` must name a tokenizer")
        # Each head has an equal part of the width.
        if self.path is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self


class BaselinesConfig(Strict):
    names: list[BaselineName] = Field(
        ["margin_sampling", "knn", "routellm_mf", "hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans"],
        min_length=1,
        description="Each writes scores/<name>/. Those of Hybrid LLM train a router each, see `hybrid_llm`. routellm_mf_published "
        "is not among the defaults, since it needs an embeddings API.",
    )
    embedding: EmbeddingConfig = EmbeddingConfig()
    knn: KnnConfig = KnnConfig()
    routellm_mf: RoutellmMfConfig = RoutellmMfConfig()
    routellm_mf_published: RoutellmPublishedConfig = RoutellmPublishedConfig()
    hybrid_llm: HybridLlmConfig = HybridLlmConfig()
    bart_score: BartScoreConfig = BartScoreConfig()

    @model_validator(mode="after")
    def _published_weights_have_their_embedding(self) -> "BaselinesConfig":
        # Another source's vectors mean nothing to these weights, even where they are as long.
        if "routellm_mf_published" in self.names and self.embedding.openai is None:
            raise ValueError(
                "the weights of routellm_mf_published were trained on text-embedding-3-small; set embedding.openai to {} (with "
                "OPENAI_API_KEY), or take routellm_mf in its place, which is trained on this run's outcomes"
            )
        return self

    @field_validator("names")
    @classmethod
    def _each_once(cls, names: list[BaselineName]) -> list[BaselineName]:
        # Each name is a folder under scores/, which would be written twice.
        if len(set(names)) < len(names):
            raise ValueError(f"a baseline comes twice in {names}")
        return names
