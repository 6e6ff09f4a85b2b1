"""`router.json`, the router's card: what it was trained on, how, and how good it is on the validation split.

Written by training beside the Hugging Face files; read by prediction, the report and the server.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from firewall_ray.config.base import Name
from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import EvaluationConfig, RunConfig
from firewall_ray.errors import ModelError, PolicyError
from firewall_ray.evaluation.intervals import bootstrap_curves, intervals, percentile_interval
from firewall_ray.evaluation.metrics import performance_curve
from firewall_ray.policy import QuantileTable, rank
from firewall_ray.router.pair import ModelOfPair, sampled_model
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.dataset import Dataset, versions
from firewall_ray.store.layout import ArtifactStore

CARD_FILE = "router.json"
TRAINED_FILE = "_TRAINED.json"  # what training left: history and best epoch. Written last, so the weights beside it are whole
VALIDATION_FILE = "_validation.parquet"  # query_id, p_weak, the design's label, pass_rate_weak, pass_rate_strong


class Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EpochMetrics(Described):
    """One epoch. The validation metrics are over the whole split, each query once."""

    epoch: int = Field(description="From 1.")
    train_bce: float = Field(description="Mean over the epoch's training rows (Eq. 2).")
    validation_bce: float
    validation_apgr: float | None = Field(description="None where it is undefined: strong not better than weak.")
    num_samples_per_s: float = Field(description="Training rows over all workers, validation and checkpoint left out.")


class Interval(Described):
    """A bootstrap interval over queries; None where the number is undefined."""

    value: float | None
    low: float | None
    high: float | None


class RouterCard(Described):
    """What a program needs to know to use the router, and a person to trust it."""

    design: Name = Field(description="The label that it was trained on: one of `schemas.LABEL_DESIGNS`, or a baseline's own.")
    weak: ModelOfPair
    strong: ModelOfPair
    prompt_template: str = Field(description="With {question}; the router reads the prompt, not the question.")
    max_length: int = Field(description="Tokens; longer prompts keep their first max_length.")
    training: RouterConfig
    num_train: int
    num_validation: int
    history: list[EpochMetrics]
    best_epoch: int = Field(description="Lowest validation_bce; its weights are the ones in this folder.")
    validation: dict[str, Interval] = Field(description="Metrics of the kept weights on the validation split, by name.")
    quantiles: QuantileTable = Field(description="Of p_weak on the validation split: strong fraction to threshold.")
    version: str = Field(description="Hash of the weights: changes when, and only when, they do.")
    versions: dict[str, str]
    created_at: str


def parse_card(text: str | bytes, where: str) -> RouterCard:
    """Raises ModelError naming file and field when `text` is not a card."""
    try:
        return RouterCard.model_validate_json(text)
    except (ValidationError, PolicyError) as e:
        problems = (
            "; ".join(f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}" for error in e.errors())
            if isinstance(e, ValidationError)
            else str(e)
        )
        raise ModelError(
            f"{where} is not a router's card: {problems}. Train it again: python jobs/train_router.py --config FILE"
        ) from e


def load_card(router: Dataset) -> RouterCard:
    """The card in a router's folder, wherever the store lies."""
    path = f"{router.path}/{CARD_FILE}"
    try:
        with router.filesystem.open_input_stream(path) as stream:
            return parse_card(stream.read(), path)
    except FileNotFoundError as e:
        raise ModelError(f"router: {router.path} has no {CARD_FILE}, so it is not a trained router. Run: {router.made_by}") from e


# Writing -------------------------------------------------------------------------------------------------------------


def write_card(config: RunConfig, store: ArtifactStore, design: str, counts: Mapping[str, int]) -> RouterCard:
    """The card of a router whose weights, history and validation scores training has left in its folder of the store."""
    dataset = store.router(design)
    with dataset.filesystem.open_input_stream(f"{dataset.path}/{TRAINED_FILE}") as stream:
        trained = json.loads(stream.read())
    table = pq.read_table(f"{dataset.path}/{VALIDATION_FILE}", filesystem=dataset.filesystem)
    validation = {name: table[name].to_numpy() for name in table.column_names}
    card = RouterCard(
        design=design,
        weak=sampled_model(config, store, config.pair.weak),
        strong=sampled_model(config, store, config.pair.strong),
        prompt_template=PROMPT_TEMPLATE,
        max_length=config.router.max_length,
        training=config.router,
        # What `data.FixedShards` leaves over is not trained on, so it is not counted.
        num_train=counts["train"] - counts["train"] % config.router.num_workers,
        num_validation=counts["validation"],
        history=[EpochMetrics(**{name: _defined(value) for name, value in epoch.items()}) for epoch in trained["history"]],
        best_epoch=trained["best_epoch"],
        validation=validation_intervals(validation, validation[design], config.evaluation),
        quantiles=QuantileTable.from_scores(validation["p_weak"]),
        version=_weights_hash(dataset),
        versions=versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with dataset.filesystem.open_output_stream(f"{dataset.path}/{CARD_FILE}") as stream:
        stream.write(card.model_dump_json(indent=2).encode())
    return card


def validation_intervals(
    validation: Mapping[str, np.ndarray], labels: np.ndarray, evaluation: EvaluationConfig
) -> dict[str, Interval]:
    """`bce` against the labels and every routing metric, each with its bootstrap interval over the validation queries."""
    # Each (num_queries,).
    p_weak, weak, strong = (validation[name] for name in ("p_weak", "pass_rate_weak", "pass_rate_strong"))
    order = rank(p_weak, validation["query_id"].tolist(), evaluation.seed)
    curve = performance_curve(weak, strong, order)
    resampled = bootstrap_curves(weak, strong, {"router": order}, evaluation.num_bootstrap, evaluation.seed)["router"]
    found = intervals(curve, resampled, evaluation.confidence)

    clipped = np.clip(p_weak.astype(np.float64), 1e-7, 1 - 1e-7)  # float32 sigmoids reach 0 and 1
    losses = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    # Resampled apart from the curves: the loss is a mean over queries, which needs no ranking.
    draws = np.random.default_rng(evaluation.seed)
    means = [losses[draws.integers(len(losses), size=len(losses))].mean() for _ in range(evaluation.num_bootstrap)]
    found = {"bce": percentile_interval(float(losses.mean()), means, evaluation.confidence), **found}
    return {
        name: Interval(value=_defined(each.value), low=_defined(each.low), high=_defined(each.high)) for name, each in found.items()
    }


def _weights_hash(dataset: Dataset) -> str:
    """Over all weight files: large models are saved in several."""
    digest = hashlib.sha256()
    for path in dataset.files():
        if path.endswith(".safetensors"):
            with dataset.filesystem.open_input_stream(path) as stream:
                while chunk := stream.read(1 << 24):  # 16 MiB: weights may be larger than memory
                    digest.update(chunk)
    # 64 bits tell versions apart, and are short enough for a response header.
    return digest.hexdigest()[:16]


def _defined(number: Any) -> Any:
    """NaN (undefined) becomes None, which JSON knows."""
    # NaN alone differs from itself; this works for whole numbers and texts as well.
    return None if number != number else number
