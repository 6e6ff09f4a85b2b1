"""A run that can be served, made in seconds: the shipped models and an untrained router with half of its scores tied."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_router import write_router
from transformers import AutoModelForSequenceClassification

from firewall_ray.config.run import load_config
from firewall_ray.policy import QuantileTable
from firewall_ray.router.card import CARD_FILE
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore

MODEL: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_num_seqs": 4, "engine_kwargs": {"enforce_eager": True}}
ROUTER = "soft_block"


def write_run(folder: Path) -> str:
    """queries/ and routers/ under `folder`, and the path of the config that serves them."""
    raw = {
        "root": str(folder),
        "queries": {"tasks": {"tiny_world": {"num_train": 0, "num_validation": 1_000, "num_test": 1_000}}},
        "models": {key: {**MODEL, "path": f"quickstart/models/{key}"} for key in ("weak", "strong")},
        "router": {"designs": [ROUTER]},
        "scoring": {"device": "cpu"},
        "serving": {
            "api_keys": "disabled",
            "strong_fraction": 0.5,
            "fail_open": "strong",
            "router_timeout_s": 5,  # ample: most tests are about what is decided, and a busy machine is no finding
            "max_in_flight": 32,
            "first_token_timeout_s": 20,
            "answer_timeout_s": 20,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    config = load_config(path)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    write_router(store, ROUTER)
    _spread(Path(store.router(ROUTER).path), prompts_of_split(store, "validation"))
    return str(path)


def prompts_of_split(store: ArtifactStore, split: str) -> list[str]:
    return [row["prompt"] for row in store.queries().read().to_pylist() if row["split"] == split]


def _spread(folder: Path, validation: list[str]) -> None:
    """Stretch the router's logits so that a fifth lies below 0 and the upper 60% above 20, where a float32 sigmoid is exactly
    1: at the strong fractions 0.5 and 0.8 ties decide, at 0.2 they do not. Then calibrate its card on these scores.
    """
    predictor = RouterPredictor(folder, num_threads=1)
    logits = torch.logit(torch.tensor(predictor.predict(validation)).double())
    low, high = torch.quantile(logits, torch.tensor([0.2, 0.4]).double()).tolist()
    scale = 20 / (high - low)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
        model.classifier.bias.copy_(scale * (model.classifier.bias - low))
    model.save_pretrained(folder)
    card = json.loads((folder / CARD_FILE).read_text())
    table = QuantileTable.from_scores(RouterPredictor(folder, num_threads=1).predict(validation))
    (folder / CARD_FILE).write_text(json.dumps({**card, "quantiles": vars(table)}))
