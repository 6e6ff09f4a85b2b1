"""The run's configuration: one YAML file, read once, checked, and handed down as typed objects.

Unknown keys are refused with the nearest right key named. Each field's description says how to choose its value; None
means off, or "decided by the task or model" where the description says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from firewall_ray.config.base import Name, PairConfig, Positive, Strict
from firewall_ray.config.baselines import BaselinesConfig
from firewall_ray.config.callers import check_names
from firewall_ray.config.evaluate_module import AnswerMetrics
from firewall_ray.config.grading import GradingConfig
from firewall_ray.config.labels import LabelsConfig
from firewall_ray.config.models import ModelConfig, SamplingConfig
from firewall_ray.config.paper import PaperConfig
from firewall_ray.config.problems import problem
from firewall_ray.config.queries import QueriesConfig
from firewall_ray.config.relabel import RelabelConfig
from firewall_ray.config.router import RouterConfig, ScoringConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.config.strict_yaml import load_yaml
from firewall_ray.errors import ConfigError


class EvaluationConfig(Strict):
    num_bootstrap: Positive = Field(1_000, description="Resamples of the queries behind every interval.")
    confidence: float = Field(0.95, gt=0, lt=1)
    num_bins: Positive = Field(10, description="Of the report's figures, of equal width, and of the paper's, of equal count.")
    controls: bool = Field(
        True,
        description="Compare every router with what the prompt's length alone and the task's name alone know, and with a router of "
        "shuffled labels where `jobs/report.py --controls` trained one.",
    )
    seed: int = Field(0, description="Breaks ties and draws the bootstrap.")
    metrics: AnswerMetrics = Field(
        {},
        description="Modules of Hugging Face's evaluate over the models' greedy answers, by the name that they get, such as "
        "{rouge: {key: rougeL}}. With one, the report also reads queries/ and samples/.",
    )


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
    labels: LabelsConfig = LabelsConfig()
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
    # Before validation: pydantic looks for the discriminator in the input, and the field's own default comes too late.
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

    @model_validator(mode="after")
    def _targets_are_of_models(self) -> "RunConfig":
        # A misspelt one would be aimed at by nothing, and nobody would miss the warning.
        calibrated = self.paper.calibration.model
        for where, keys in {
            "paper.targets": self.paper.targets,
            "paper.calibration.model": [calibrated] if calibrated else [],
        }.items():
            if unknown := sorted(set(keys) - set(self.models)):
                raise ValueError(f"{where} names {unknown[0]!r}, but models has only {sorted(self.models)}")
        return self

    @model_validator(mode="after")
    def _names_can_be_asked_for(self) -> "RunConfig":
        check_names(self.serving.aliases, self.serving.keys, (self.pair.weak, self.pair.strong))
        return self

    @property
    def served_router(self) -> str:
        """The folder of routers/ that an application of this run begins with."""
        # Folders of routers/ are called by their design.
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
    # After the overrides, which may name another root.
    if root is not None:
        data["root"] = root
    try:
        return RunConfig.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join([f"--config {path}:", *(problem(RunConfig, error) for error in e.errors())])) from e


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
        # `router:` with nothing after it is None to YAML; its fields may be set all the same.
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section with keys.")
        node = child
    node[last] = value
