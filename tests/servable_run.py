"""A run that can be served, made in seconds: the shipped models and an untrained router with half of its scores tied.

The weak model is a base model, as the paper's are: it has no chat template, and was sampled with the raw prompt.
"""

import json
import shutil
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
# How the pair was asked. The shipped models were trained on prompts that end in a space.
RAW = {"format": "raw", "keep_trailing_space": True}
CHAT = {"format": "chat", "system_prompt": None, "chat_template": None, "chat_template_kwargs": {}}


def write_run(folder: Path) -> str:
    """queries/ and routers/ under `folder`, and the path of the config that serves them."""
    weak = base_model("quickstart/models/weak", folder / "base")
    raw = {
        "root": str(folder),
        "queries": {"tasks": {"tiny_world": {"num_train": 0, "num_validation": 1_000, "num_test": 1_000}}},
        "models": {
            "weak": {**MODEL, "path": str(weak), "keep_trailing_space": True},
            "strong": {**MODEL, "path": "quickstart/models/strong"},
        },
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


def base_model(path: str, folder: Path) -> Path:
    """A copy under `folder`, by the same name, of a model without its chat template."""
    copy = folder / Path(path).name
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("chat_template.jinja"))
    return copy


def models_elsewhere(url: str, **said: Any) -> dict[str, Any]:
    """The pair at a server, asked as the card says. said: more for both."""
    asked = {"weak": {"keep_trailing_space": True}, "strong": {"prompt": "chat"}}
    return {key: {"engine": "openai", "base_url": url, "model": key, **how, **said} for key, how in asked.items()}


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
    asked = {key: {**card[key], "prompt": prompt} for key, prompt in (("weak", RAW), ("strong", CHAT))}
    (folder / CARD_FILE).write_text(json.dumps({**card, **asked, "quantiles": vars(table)}))
