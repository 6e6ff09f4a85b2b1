"""A run's labels and scores without any model: two tasks, two pairs, a second backbone. What jobs/paper.py writes tables from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from firewall_ray.config.run import RunConfig
from firewall_ray.labels import hard_block, soft_block
from firewall_ray.schemas import LABELS, SCORES

NUM = 120  # queries a task: half validation, half test
TASKS = ("facts", "sums")


def labels_table(gap: float = 0.5, seed: int = 0) -> pa.Table:
    """A third of the queries is easy, `gap` of the others needs the strong model, the rest neither answers."""
    rng = np.random.default_rng(seed)
    size = NUM * len(TASKS)
    easy, gains = rng.random(size) < 1 / 3, rng.random(size) < gap
    weak = np.where(easy, rng.binomial(8, 0.9, size), rng.binomial(8, 0.1, size)) / 8
    strong = np.where(gains & ~easy, rng.binomial(8, 0.9, size) / 8, weak)
    weak, strong = weak.astype(np.float32), strong.astype(np.float32)
    columns: dict[str, Any] = {
        "query_id": [f"q{i:04d}" for i in range(size)],
        "task": np.repeat(TASKS, NUM),
        "split": np.tile(["validation", "test"], size // 2),
        "prompt": [f"Question: {i}\nAnswer: " for i in range(size)],
        "num_samples": np.full(size, 8),
        "pass_rate_weak": weak,
        "pass_rate_strong": strong,
        "greedy_weak": weak > 0.5,
        "greedy_strong": strong > 0.5,
        "hard_block": hard_block(weak, strong),
        "weak_pass_rate": weak,
        "strong_pass_rate": 1 - strong,
    }
    soft = soft_block(weak, strong)
    return pa.table({field.name: pa.array(columns.get(field.name, soft)).cast(field.type, safe=False) for field in LABELS}, LABELS)


def scores_table(labels: pa.Table, label: str = "soft_block", noise: float = 0.1, seed: int = 0) -> pa.Table:
    p_weak = np.clip(labels[label].to_numpy() + np.random.default_rng(seed).normal(0, noise, len(labels)), 0, 1)
    return pa.table({"query_id": labels["query_id"], "p_weak": p_weak.astype(np.float32)}, SCORES)


def write_table(root: Path, folder: str, table: pa.Table) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / folder / "part.parquet")


def paper_config(root: Path, **paper: Any) -> RunConfig:
    scratch = {"path": None, "tokenizer": "quickstart/models/weak"}
    models = {key: {"engine": "vllm", "path": f"quickstart/models/{key}"} for key in ("weak", "middle", "strong")}
    section = {"pairs": [{"weak": "middle", "strong": "strong"}], "backbones": {"llama": {"backbone": scratch}}} | paper
    return RunConfig.model_validate(
        {
            "root": str(root),
            "queries": {"tasks": {"tiny_world": {}}},
            "models": models,
            "router": {"backbone": scratch},
            "evaluation": {"num_bootstrap": 50},
            "paper": {"datasets": {"TriviaQA": "facts", "GSM8K": "sums"}} | section,
        }
    )


def write_run(root: Path) -> RunConfig:
    """Everything that the tables read, as another program might have written it."""
    labels = labels_table()
    write_table(root, "labels", labels)
    write_table(root, "pairs/middle-strong/labels", labels_table(gap=0.3))
    for seed, label in enumerate(("soft_block", "hard_block", "weak_pass_rate")):
        write_table(root, f"scores/{label}", scores_table(labels, label, seed=seed))
    write_table(root, "scores/some_baseline", scores_table(labels, noise=2.0, seed=9))
    for label in ("soft_block", "hard_block"):
        write_table(root, f"backbones/llama/scores/{label}", scores_table(labels, label, noise=0.5, seed=5))
    return paper_config(root)
