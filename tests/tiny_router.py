"""A router that was never trained: random weights spread out enough for scores to differ, with a card."""

from pathlib import Path

import torch

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.router import RouterConfig
from firewall_ray.policy import QuantileTable
from firewall_ray.router.card import CARD_FILE, EpochMetrics, Interval, RouterCard
from firewall_ray.router.model import build_model, load_tokenizer
from firewall_ray.router.pair import ModelOfPair
from firewall_ray.schemas import PROMPT_TEMPLATE
from firewall_ray.store.layout import ArtifactStore

SCRATCH = BackboneConfig(path=None, tokenizer="quickstart/models/weak", hidden_size=32, num_layers=2, intermediate_size=32)
CAUSAL = BackboneConfig(path="quickstart/models/weak")
MAX_LENGTH = 48


def make_card(router: RouterConfig, design: str = "soft_block") -> RouterCard:
    return RouterCard(
        design=design,
        weak=ModelOfPair(key="weak", path="quickstart/models/weak"),
        strong=ModelOfPair(key="strong", path="quickstart/models/strong"),
        prompt_template=PROMPT_TEMPLATE,
        max_length=router.max_length,
        training=router,
        num_train=10,
        num_validation=5,
        history=[EpochMetrics(epoch=1, train_bce=0.5, validation_bce=0.6, validation_apgr=None, num_samples_per_s=10.0)],
        best_epoch=1,
        validation={"apgr": Interval(value=None, low=None, high=None)},
        quantiles=QuantileTable.from_scores([0.1, 0.5, 0.5]),
        version="0123456789abcdef",
        versions={"torch": "2"},
        created_at="2026-01-01T00:00:00+00:00",
    )


def fill_folder(folder: Path, backbone: BackboneConfig = SCRATCH, seed: int = 1, design: str = "soft_block") -> None:
    """Weights, tokenizer and card into an existing folder."""
    router = RouterConfig(backbone=backbone, max_length=MAX_LENGTH)
    tokenizer = load_tokenizer(backbone)
    torch.manual_seed(seed)
    model = build_model(router, tokenizer)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / CARD_FILE).write_text(make_card(router, design).model_dump_json())


def write_router(store: ArtifactStore, design: str, seed: int = 1) -> None:
    """A finished router in a local store."""
    dataset = store.router(design)
    dataset.begin({"seed": seed})
    fill_folder(Path(dataset.path), seed=seed, design=design)
    dataset.finish({}, {})
