"""The config's section `paper`: what jobs/paper.py compares, and what its cost plan reckons with."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from firewall_ray.config.base import BackboneConfig, LabelDesign, Name, PairConfig, Positive, Strict
from firewall_ray.config.grading import Gsm8kRule
from firewall_ray.schemas import SPLITS


class BackboneVariant(Strict):
    """Another backbone for the routers of Table 4. What is None is as in the section `router`."""

    backbone: BackboneConfig = Field(description="A causal LM gets a classification head that reads the prompt's last token.")
    learning_rate: float | None = Field(None, gt=0, description="Pretrained models want a smaller one than fresh ones.")
    max_length: Positive | None = Field(None, description="Tokens; at most what the backbone reads.")
    batch_size: Positive | None = Field(None, description="Over all workers. Larger models need smaller ones.")

    def changes(self) -> dict[str, Any]:
        """The fields of `router` that differ, as objects for `model_copy`."""
        # By getattr, not model_dump: that would turn `backbone` into a dict, which model_copy does not check.
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


# The cost plan -------------------------------------------------------------------------------------------------------


class WorkloadConfig(Strict):
    """What is known of a task before anything is sampled. Counts of queries/ and of samples/ replace it once they are there."""

    num_train: int = Field(ge=0, description="Queries that routers are trained on.")
    num_other: int = Field(ge=0, description="Queries of validation and test together.")
    num_test: int | None = Field(
        None, ge=0, description="Those of test among them: Table 2's other models are sampled on these alone. None: all of them."
    )
    prompt_tokens: float = Field(gt=0, description="Mean of a prompt. Measure: the tokenizer over a hundred questions.")
    completion_tokens: float = Field(gt=0, description="Mean of a sampled completion. Measure: jobs/sample.py --limit 100.")
    references: float = Field(1, ge=1, description="Mean number of a query's reference texts, such as aliases, for BARTScore.")

    @model_validator(mode="after")
    def _test_is_a_part(self) -> "WorkloadConfig":
        if (self.num_test or 0) > self.num_other:
            raise ValueError(f"num_test is {self.num_test}, more than num_other, {self.num_other}, of which it is a part")
        return self

    def num_queries(self, splits: Collection[str] = SPLITS) -> int:
        """Queries of these splits."""
        num_test = self.num_other if self.num_test is None else self.num_test
        of_split = {"train": self.num_train, "validation": self.num_other - num_test, "test": num_test}
        return sum(of_split[split] for split in splits)


class ThroughputConfig(Strict):
    """Of one engine, all its GPUs together. A finished samples/<model> replaces it by what was measured there."""

    prompt_tokens_per_s: float = Field(gt=0, description="Prefill.")
    generated_tokens_per_s: float = Field(gt=0, description="Decoding, with as many sequences as `max_num_seqs` at once.")


class BackboneRates(Strict):
    """Of one of `paper.backbones`, where it is not measured. None: the run's own rate, by the numbers of parameters."""

    training_queries_per_s: float | None = Field(None, gt=0, description="Of one training worker.")
    scoring_queries_per_s: float | None = Field(None, gt=0, description="Of one scoring actor and router.")


class BaselineRates(Strict):
    """Of one actor, or of the driver. None: left out of the plan until it is measured."""

    embedding_queries_per_s: float | None = Field(None, gt=0, description="Prompts embedded by one actor.")
    bart_score_pairs_per_s: float | None = Field(None, gt=0, description="Pairs of response and reference, by one actor.")
    bart_training_pairs_per_s: float | None = Field(None, gt=0, description="Of the small BART from scratch, in the driver.")
    mf_battles_per_s: float | None = Field(None, gt=0, description="RouteLLM's matrix factorisation, trained in the driver.")


class ShapeConfig(Strict):
    """A Llama-like decoder's config.json, for a model whose files are not on this machine; the same names."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    vocab_size: Positive
    tie_word_embeddings: bool = False


class PlanConfig(Strict):
    """What `jobs/paper.py --plan` cannot know by itself."""

    workload: dict[Name, WorkloadConfig] = Field({}, description="By task.")
    throughput: dict[Name, ThroughputConfig] = Field({}, description="By key in `models`.")
    shapes: dict[Name, ShapeConfig] = Field({}, description="By key in `models`. Not needed for folders on this machine.")
    training_queries_per_s: float | None = Field(
        None, gt=0, description="Of one training worker. None: as finished routers had it."
    )
    scoring_queries_per_s: float | None = Field(None, gt=0, description="Of one scoring actor and router. None: left out.")
    backbones: dict[Name, BackboneRates] = Field({}, description="By name in `paper.backbones`.")
    baselines: BaselineRates = BaselineRates()
    start_s: float = Field(
        0, ge=0, description="Until an engine, worker or actor begins: weights read, kernels compiled. Measured rates include it."
    )
    rates_from: str | None = Field(
        None, description="ROOT of a finished run whose rates are taken, such as a small one. None: this run's, as far as it is."
    )
    price_per_device_hour: float | None = Field(None, ge=0, description="Of one GPU and hour, in any currency. None: no prices.")
    # The paper's A100s (Sec. 4.1).
    gpu_memory_gb: float = Field(80, gt=0, description="Of one GPU, in 10^9 bytes.")


# Pass rates to aim at ------------------------------------------------------------------------------------------------

Percent = Annotated[float, Field(ge=0, le=100)]


class CalibrationConfig(Strict):
    """The grid of `jobs/paper.py --calibrate`: every combination of these. Samples are shared by the rules, and by nothing else."""

    model: Name | None = Field(None, description="Key in `models`. None: the pair's weak one, the cheapest.")
    num_queries: Positive = Field(300, description="Of each task's test split. A rate's standard error is then 2 points or so.")
    num_samples: Positive = Field(4, description="Of a query; more queries narrow a rate more than more samples do.")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field([0.7, 1.0], min_length=1)
    keep_trailing_space: list[bool] = Field([True, False], min_length=1, description="As in `models.<key>`; raw prompts only.")
    stop: list[bool] = Field(
        [True, False], min_length=1, description="True: the strings of sampling.stop, or the task's own. False: none."
    )
    gsm8k_rules: list[Gsm8kRule] = Field(["flexible", "strict", "final"], min_length=1, description="As in grading.gsm8k.rule.")


# The section ---------------------------------------------------------------------------------------------------------


Dataset = Literal["TriviaQA", "GSM8K", "HumanEval"]


class PaperConfig(Strict):
    routers: list[Name] = Field(
        ["soft_block", "hard_block"],
        min_length=1,
        description="Ours in Table 1. The other label designs are Table 3's; whatever else lies under scores/ is a baseline.",
    )
    datasets: dict[Dataset, str] = Field(
        {"TriviaQA": "triviaqa", "GSM8K": "gsm8k", "HumanEval": "humaneval"},
        description="The paper's data sets, and the task that stands for each.",
    )
    pairs: list[PairConfig] = Field(
        [], description="Table 2: pairs that the routers of `pair` are evaluated on, not retrained. The first is the table's own."
    )
    backbones: dict[Name, BackboneVariant] = Field(
        {}, description="Table 4: other backbones, by the name in the table; the first is its causal one."
    )
    backbone_designs: list[LabelDesign] = Field(
        ["soft_block", "hard_block"], description="Table 4: label designs of each backbone."
    )
    bart_score_queries: Positive = Field(
        1_000,
        description="Figures 3 and 4: queries of a task and split at most. Test responses are scored for these alone.",
    )
    targets: dict[Name, Annotated[dict[Name, Percent], Field(min_length=1)]] = Field(
        {},
        description="Pass rates in percent that a run should come near, by key in `models` and task. Of the paper's models, base "
        "or Instruct, its own are known.",
    )
    calibration: CalibrationConfig = CalibrationConfig()
    plan: PlanConfig = PlanConfig()

    @field_validator("pairs")
    @classmethod
    def _two_models(cls, pairs: list[PairConfig]) -> list[PairConfig]:
        for pair in pairs:
            if pair.weak == pair.strong:
                raise ValueError(f"a pair is {pair.weak!r} twice; name two models")
        return pairs
