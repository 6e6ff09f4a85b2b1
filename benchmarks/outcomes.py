"""Routers trained on outcomes that exist already, cross-validated: what can be learnt from a thousand verdicts, with intervals.

Two published sets: RouteLLM's GSM8K answers (Mixtral-8x7B against GPT-4, the grade by the last number), and TriviaQA answers of
five models judged by people (QA-Eval). Every query is test in one of k folds, and is scored there by a router that never saw it:
import_outcomes, label, train_router and score, as any run. Scores of different folds' routers are no common scale, so ranks
within the fold are pooled. All routers are measured on the same resamples of the queries, so their differences are paired.

Compared: the router, and three that are nearly free: TF-IDF with a logistic regression, the question's length, and random
routing, whose APGR is 0.5. The bound is the oracle.

    python benchmarks/outcomes.py --data ../shared/data/outcomes --root runs/outcomes
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from firewall_ray import policy
from firewall_ray.cluster.connect import connected
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.intervals import bootstrap_curves, paired_bootstrap, percentile_interval
from firewall_ray.evaluation.metrics import curve_apgr, oracle_p_weak, performance_curve
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore

CASES: dict[str, dict[str, Any]] = {
    "gsm8k, Mixtral-8x7B against GPT-4": {
        "path": "routellm_gsm8k.parquet",
        "columns": {"query": "prompt", "correct": "last_number_correct", "split": None},
        "models": {"weak": "mistralai/Mixtral-8x7B-Instruct-v0.1", "strong": "gpt-4-1106-preview"},
        "task": "gsm8k",
    },
    "triviaqa, GPT-3.5 against ChatGPT-4": {
        "path": "evouna_triviaqa.parquet",
        "columns": {"query": "prompt", "model": "model_key"},
        "models": {"weak": "gpt35", "strong": "gpt4"},
        "task": "triviaqa",
    },
    "triviaqa, DPR+FiD against Bing Chat": {
        "path": "evouna_triviaqa.parquet",
        "columns": {"query": "prompt", "model": "model_key"},
        "models": {"weak": "fid", "strong": "newbing"},
        "task": "triviaqa",
    },
}
VOCABULARY = 4_000


def fold_config(root: Path, case: dict[str, Any], data: Path, fold: int, options: dict[str, Any]) -> RunConfig:
    """A run of one fold. Without a checkpoint, a small DeBERTa from scratch with a tokenizer of its own."""
    splits = {"folds": options["folds"], "fold": fold, "validation": 0.15, "seed": options["seed"]}
    scratch = {"path": None, "tokenizer": str(root / "tokenizer"), "hidden_size": 64, "num_layers": 2, "intermediate_size": 128}
    backbone = {"path": options["backbone"]} if options["backbone"] else scratch
    return RunConfig.model_validate(
        {
            "root": str(root),
            "queries": {"outcomes": {**case, "path": str(data / case["path"]), "splits": splits}},
            "models": {key: {"path": name} for key, name in case["models"].items()},
            "router": {
                # With one sample a model, hard_block, hard_block_greedy, hard_label and win_rate equal soft_block.
                "designs": ["soft_block"],
                "backbone": backbone,
                "epochs": options["epochs"],
                "batch_size": 32,
                "learning_rate": 2e-5 if options["backbone"] else 5e-4,
                "max_length": 128,
                "precision": "fp32",
                "zero_stage": 0,
                "num_workers": 1,
                "device": "cpu",
                "seed": options["seed"],
            },
            "scoring": {"device": "cpu"},
            "ray": {"num_cpus": 8, "object_store_memory_gib": 0.5, "dashboard": False},
        }
    )


def train_tokenizer(prompts: list[str], folder: Path) -> None:
    """Byte-level BPE on the training prompts, which is all that a router from scratch may know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(prompts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)


def scored_fold(config: RunConfig) -> pd.DataFrame:
    """The test queries of one fold: query_id, prompt, both pass rates, and the p_weak of every router."""
    store = ArtifactStore(config.root)
    run_import(config, store)
    run_labeling(config, store)
    labels = store.labels().read().to_pandas()
    train, test = (labels[labels["split"] == split] for split in ("train", "test"))
    folder = Path(config.root) / "tokenizer"
    if config.router.backbone.path is None and not folder.exists():
        train_tokenizer(train["prompt"].tolist(), folder)
    run_training(config, store)
    run_scoring(config, store)
    test = test[["query_id", "prompt", "pass_rate_weak", "pass_rate_strong"]]
    for design in config.router.designs:
        test = test.merge(store.scores(design).read().to_pandas().rename(columns={"p_weak": design}), on="query_id")
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=1.0, max_iter=1_000))
    words.fit(train["prompt"], train["soft_block"] > 0.5)
    return test.assign(
        tfidf=words.predict_proba(test["prompt"])[:, 1],
        length=-test["prompt"].str.len().astype(float),
        oracle=oracle_p_weak(test["pass_rate_weak"], test["pass_rate_strong"]),
    )


def pooled(folds: Iterator[pd.DataFrame], routers: list[str]) -> pd.DataFrame:
    """All folds' test queries in the order of their ids, with ranks in (0, 1) within the fold for scores; ties share a rank."""
    ranked = [fold.assign(**{name: (fold[name].rank() - 0.5) / len(fold) for name in routers}) for fold in folds]
    return pd.concat(ranked).sort_values("query_id", ignore_index=True)


def evaluate(queries: pd.DataFrame, routers: list[str], num_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """A row a router: APGR with its interval, and the paired difference of `soft_block` from it."""
    weak, strong = (queries[f"pass_rate_{model}"].to_numpy(np.float64) for model in ("weak", "strong"))
    prompts = queries["prompt"].tolist()
    orders = {name: policy.rank(queries[name].to_numpy(), prompts, seed) for name in routers}
    resampled = bootstrap_curves(weak, strong, {**orders, "random": None}, num_bootstrap, seed)
    curves = {name: performance_curve(weak, strong, order) for name, order in orders.items()}
    curves["random"] = np.linspace(weak.mean(), strong.mean(), resampled["random"].shape[1])
    rows = []
    for name, curve in curves.items():
        apgr = percentile_interval(float(curve_apgr(curve)), curve_apgr(resampled[name]))
        gain = paired_bootstrap("apgr", curves["soft_block"], curve, resampled["soft_block"], resampled[name])
        rows.append(
            {"router": name, "apgr": apgr.value, "low": apgr.low, "high": apgr.high}
            | {"soft_block_gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
        )
    return rows


def main(
    data: Annotated[Path, typer.Option(help="Folder with routellm_gsm8k.parquet and evouna_triviaqa.parquet.")],
    root: Annotated[Path, typer.Option(help="Artifacts of every fold; finished ones are reused.")] = Path("runs/outcomes"),
    case: Annotated[str, typer.Option(help="Only cases whose name begins so.")] = "",
    folds: Annotated[int, typer.Option(min=2)] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="The one with the lowest validation loss is kept.")] = 5,
    backbone: Annotated[
        str | None, typer.Option(help="A pretrained encoder's folder or hub id. None: small, from scratch.")
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(min=1)] = 2_000,
    seed: Annotated[int, typer.Option(help="Draws the folds, trains, breaks ties and resamples.")] = 0,
) -> None:
    """Print a table for each case, then one JSON line. An APGR whose interval holds 0.5 says that nothing was learnt."""
    logging.basicConfig(level=logging.WARNING)
    options = {"folds": folds, "epochs": epochs, "backbone": backbone, "seed": seed}
    routers = ["soft_block", "tfidf", "length", "oracle"]
    found: dict[str, Any] = {}
    for name in [name for name in CASES if name.startswith(case)]:
        started = time.monotonic()
        configs = [fold_config(root / name.replace(" ", "_") / f"fold_{i}", CASES[name], data, i, options) for i in range(folds)]
        with redirect_stdout(sys.stderr), connected(configs[0].ray):  # where Ray prints; stdout is for the tables
            queries = pooled(map(scored_fold, configs), routers)
        rows = evaluate(queries, routers, num_bootstrap, seed)
        weak, strong = queries["pass_rate_weak"].mean(), queries["pass_rate_strong"].mean()
        print(f"\n{name}: {len(queries):,} queries, weak {weak:.3f}, strong {strong:.3f}, {folds} folds")
        print(f"{'router':>14}  {'APGR':>21}  {'soft_block minus it':>22}")
        for row in rows:
            interval, gain = (
                f"{row[value]:.3f} [{row[low]:.3f}, {row[high]:.3f}]"
                for value, low, high in (("apgr", "low", "high"), ("soft_block_gain", "gain_low", "gain_high"))
            )
            print(f"{row['router']:>14}  {interval:>21}  {gain:>22}", flush=True)
        found[name] = {"num_queries": len(queries), "weak": weak, "strong": strong, "routers": rows}
        found[name]["elapsed_s"] = round(time.monotonic() - started)
    print(json.dumps({"cases": found, **options, "versions": versions()}, default=float))


if __name__ == "__main__":
    typer.run(main)
