"""Does a router beat what is nearly free, on answers of real models? Four pairs, a pretrained encoder, controls, paired intervals.

Two published sets of outcomes, read as they are published, a row a query with the verdicts of all models: LLMRouter's nine models
on mixed benchmarks, and ZeroEval's GSM8K, where the models of a family stand for the samples of one, so that pass rates are graded.
The stages are any run's: import_outcomes, label, train_router, score, baselines. LLMRouter has a test split of its own. GSM8K is
cross-validated as in outcomes.py: every query is test in one fold, and ranks within the fold are pooled.

Compared: our router with every label design, kNN and RouteLLM's matrix factorisation on the same encoder's embeddings, and the
controls: a regression tree on the prompt's length alone, kNN on shuffled labels, and a coin, whose APGR is 0.5. The bound is the
oracle. Neither set names the benchmark that a query is from, so there is no control that knows the task alone. All are measured on
the same resamples of the queries, so their differences are paired.

    python benchmarks/real_outcomes.py --data ../shared/data/outcomes --backbone all-MiniLM-L6-v2 --root runs/real_outcomes

The folder needs llmrouter_9_models.jsonl.gz and zeroeval_gsm8k.jsonl.gz; the backbone is any encoder with mean pooling. A killed
run goes on where it stopped.
"""

import gzip
import json
import logging
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from firewall_ray import policy
from firewall_ray.baselines.embeddings import centred, embedding_name, read_embeddings
from firewall_ray.baselines.knn import knn_scores
from firewall_ray.baselines.run import run_baselines
from firewall_ray.cluster.connect import connected
from firewall_ray.config.queries import SplitsConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.controls import LENGTH
from firewall_ray.evaluation.intervals import bootstrap_curves, paired_bootstrap, percentile_interval
from firewall_ray.evaluation.metrics import curve_apgr, oracle_p_weak, performance_curve
from firewall_ray.stages.controls import run_controls
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.splits import draw_split

LLMROUTER: dict[str, Any] = {
    "path": "llmrouter_9_models.jsonl.gz",
    "columns": {"query": "question", "verdicts": "scores"},
    # 3% of the scores lie between 0 and 1.
    "threshold": 0.5,
    "task": "llmrouter",
}
GSM8K: dict[str, Any] = {"path": "zeroeval_gsm8k.jsonl.gz", "columns": {"verdicts": "correct", "task": None}, "task": "gsm8k"}
# By task: 5,000 training queries, and 750 in each fold. The epoch with the lowest validation loss is kept.
EPOCHS = {"llmrouter": 2, "gsm8k": 3}
GEMMA_2 = ["gemma-2-2b-it", "gemma-2-9b-it", "gemma-2-27b-it@together"]
CLAUDE_3_5 = ["claude-3-5-haiku-20241022", "claude-3-5-sonnet-20240620", "claude-3-5-sonnet-20241022"]
NEMOTRON = "llama-3.1-nemotron-51b-instruct"
PAIRS: dict[str, dict[str, Any]] = {
    "mistral-7b, nemotron-51b": {**LLMROUTER, "models": {"weak": "mistral-7b-instruct-v0.3", "strong": NEMOTRON}},
    "llama-3.1-8b, nemotron-51b": {**LLMROUTER, "models": {"weak": "llama-3.1-8b-instruct", "strong": NEMOTRON}},
    # Families with a gap of 0.19 and 0.27 in the mean pass rate; three answers a side, and two.
    "gemma-2 2b 9b 27b, claude-3.5": {**GSM8K, "models": {"weak": GEMMA_2, "strong": CLAUDE_3_5}},
    "command-r and r-plus, llama-3 70b": {
        **GSM8K,
        "models": {
            "weak": ["command-r", "command-r-plus"],
            "strong": ["Meta-Llama-3-70B-Instruct", "Meta-Llama-3.1-70B-Instruct"],
        },
    },
}
DESIGNS = ["soft_block", "hard_block", "hard_label", "weak_pass_rate"]
BASELINES = ["knn", "routellm_mf"]
CONTROLS = ["length", "shuffled", "coin"]


def with_validation(source: Path, path: Path, seed: int) -> None:
    """LLMRouter's rows with a validation split drawn from train, and without the test queries that are training queries as well.

    119 of its 500 test questions stand in its train split too, word for word: import_outcomes refuses a question of two splits, and
    a router would have seen them.
    """
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    seen = {row["question"] for row in rows if row["split"] == "train"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if row["split"] == "train":
                row["split"] = draw_split(row["question"], SplitsConfig(test=0, validation=0.1, seed=seed))
            elif row["question"] in seen:
                continue
            file.write(json.dumps(row) + "\n")


def configs_of(root: Path, pair: dict[str, Any], data: Path, options: dict[str, Any]) -> list[RunConfig]:
    """A run a fold; of LLMRouter's own split one."""
    if pair["task"] == "llmrouter":
        path = root.parent / "llmrouter.jsonl"
        if not path.exists():
            with_validation(data / pair["path"], path, options["seed"])
        splits: list[dict[str, Any]] = [{}]
    else:
        path = data / pair["path"]
        shared = {"folds": options["folds"], "validation": 0.15, "seed": options["seed"]}
        splits = [{**shared, "fold": fold} for fold in range(options["folds"])]
    return [config_of(root / f"fold_{i}", {**pair, "path": str(path), "splits": each}, options) for i, each in enumerate(splits)]


def config_of(root: Path, outcomes: dict[str, Any], options: dict[str, Any]) -> RunConfig:
    backbone = options["backbone"]
    return RunConfig.model_validate(
        {
            "root": str(root),
            "queries": {"outcomes": outcomes},
            # Neither runs. kNN and RouteLLM-MF read the weak model's hidden states, averaged over the query: the encoder stands in
            # its place, and averaging is its own pooling.
            "models": {"weak": {"path": backbone}, "strong": {"path": "-"}},
            "baselines": {
                "names": BASELINES,
                "embedding": {"max_length": options["max_length"], "device": "cpu", "num_cpus": 2},
            },
            "router": {
                "designs": options["designs"],
                "backbone": {"path": backbone},
                "epochs": EPOCHS[outcomes["task"]],
                "batch_size": 16,
                "learning_rate": 5e-5,
                "max_length": options["max_length"],
                "precision": "fp32",
                "zero_stage": 0,
                "num_workers": 2,
                "device": "cpu",
                "seed": options["seed"],
            },
            "scoring": {"device": "cpu", "num_cpus": 2},
            "ray": {"num_cpus": 8, "object_store_memory_gib": 0.5, "dashboard": False},
        }
    )


def coinciding(labels: pd.DataFrame, designs: list[str]) -> dict[str, list[str]]:
    """The designs to train, each with those whose labels are the same: of one answer a model nearly all are."""
    groups: dict[str, list[str]] = {}
    for design in designs:
        same = next((first for first in groups if labels[first].equals(labels[design])), None)
        if same is None:
            groups[design] = []
        else:
            groups[same].append(design)
    return groups


def scored_fold(config: RunConfig, limit: int | None) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The test queries of one fold (query_id, prompt, both pass rates, the p_weak of all that is compared), and `coinciding`."""
    store = ArtifactStore(config.root)
    run_import(config, store, limit=limit)
    run_labeling(config, store)
    run_baselines(config, store)
    run_controls(config, store)
    labels = store.labels().read().to_pandas()
    groups = coinciding(labels, list(config.router.designs))
    run_training(config, store, designs=list(groups))
    run_scoring(config, store, designs=list(groups))
    train = (labels["split"] == "train").to_numpy()
    found = labels.assign(
        shuffled=shuffled_knn(config, store, labels),
        oracle=oracle_p_weak(labels["pass_rate_weak"], labels["pass_rate_strong"]),
    )
    folders = {name: name for name in (*groups, *BASELINES)} | {"length": LENGTH}
    for name, folder in folders.items():
        scores = store.scores(folder).read().to_pandas().set_index("query_id")["p_weak"]
        found[name] = scores.loc[found["query_id"]].to_numpy()
    return found[~train & (labels["split"] == "test")], groups


def shuffled_knn(config: RunConfig, store: ArtifactStore, labels: pd.DataFrame) -> np.ndarray:
    """The kNN of the baselines after the labels of train and validation were dealt out anew: what no signal at all comes to."""
    splits = labels["split"].to_numpy(dtype=np.str_)
    vectors = centred(read_embeddings(store.embeddings(embedding_name(config)), labels["query_id"].tolist()), splits == "train")
    dealt = labels["soft_block"].to_numpy(copy=True)
    rng = np.random.default_rng(config.evaluation.seed)
    for split in ("train", "validation"):
        dealt[splits == split] = rng.permutation(dealt[splits == split])
    return knn_scores(vectors, dealt, splits, config.baselines.knn.num_neighbours).p_weak


def pooled(folds: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """All folds' test queries in the order of their ids, with ranks in (0, 1) within the fold for scores; ties share a rank."""
    ranked = [fold.assign(**{name: (fold[name].rank() - 0.5) / len(fold) for name in names}) for fold in folds]
    return pd.concat(ranked).sort_values("query_id", ignore_index=True)


def evaluate(queries: pd.DataFrame, names: list[str], num_bootstrap: int, seed: int) -> dict[str, Any]:
    """Of every router its APGR, and what it has more than the best control and than kNN, each with its interval."""
    weak, strong = (queries[f"pass_rate_{model}"].to_numpy(np.float64) for model in ("weak", "strong"))
    prompts = queries["prompt"].tolist()
    orders = {name: policy.rank(queries[name].to_numpy(), prompts, seed) for name in names}
    resampled = bootstrap_curves(weak, strong, {**orders, "coin": None}, num_bootstrap, seed)
    curves = {name: performance_curve(weak, strong, order) for name, order in orders.items()}
    curves["coin"] = np.linspace(weak.mean(), strong.mean(), resampled["coin"].shape[1])
    apgr = {name: percentile_interval(float(curve_apgr(curve)), curve_apgr(resampled[name])) for name, curve in curves.items()}
    best = max(CONTROLS, key=lambda name: apgr[name].value)
    rows = []
    for name, curve in curves.items():
        gains = {
            other: paired_bootstrap("apgr", curve, curves[other], resampled[name], resampled[other])
            for other in dict.fromkeys((best, "knn"))
            if other != name
        }
        rows.append({"router": name, "apgr": triple(apgr[name])} | {f"over_{other}": triple(gain) for other, gain in gains.items()})
    return {"num_queries": len(queries), "weak": weak.mean(), "strong": strong.mean(), "best_control": best, "routers": rows}


def triple(interval: Any) -> list[float]:
    return [round(float(value), 4) for value in (interval.value, interval.low, interval.high)]


def show(name: str, found: dict[str, Any], groups: dict[str, list[str]]) -> None:
    best = found["best_control"]
    print(f"\n{name}: {found['num_queries']:,} test queries, weak {found['weak']:.3f}, strong {found['strong']:.3f}")
    for design, same in groups.items():
        if same:
            print(f"the same labels as {design}, so trained once: {', '.join(same)}")
    print(f"{'router':>14}  {'APGR':>21}  {'minus ' + best:>24}  {'minus knn':>24}")
    for row in found["routers"]:
        cells = [row.get(key) for key in ("apgr", f"over_{best}", "over_knn")]
        texts = ["" if cell is None else f"{cell[0]:.3f} [{cell[1]:.3f}, {cell[2]:.3f}]" for cell in cells]
        print(f"{row['router']:>14}  {texts[0]:>21}  {texts[1]:>24}  {texts[2]:>24}", flush=True)


def main(
    data: Annotated[Path, typer.Option(help="Folder with llmrouter_9_models.jsonl.gz and zeroeval_gsm8k.jsonl.gz.")],
    backbone: Annotated[str, typer.Option(help="A pretrained encoder's folder or hub id, such as all-MiniLM-L6-v2.")],
    root: Annotated[Path, typer.Option(help="Artifacts of every pair; finished ones are reused.")] = Path("runs/real_outcomes"),
    pair: Annotated[str, typer.Option(help="Only pairs whose name begins so.")] = "",
    design: Annotated[list[str], typer.Option(help="Labels to train on; repeatable.")] = DESIGNS,
    folds: Annotated[int, typer.Option(min=2, help="Of GSM8K's cross-validation.")] = 3,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a query that are read.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Queries of each pair; for a try.")] = None,
    num_bootstrap: Annotated[int, typer.Option(min=1)] = 2_000,
    seed: Annotated[int, typer.Option(help="Draws the folds, trains, breaks ties and resamples.")] = 0,
) -> None:
    """Print a table for each pair, then one JSON line. An APGR whose interval holds 0.5 says that a coin is not beaten."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("firewall_ray").setLevel(logging.INFO)
    options = {"designs": design, "folds": folds, "max_length": max_length, "backbone": backbone, "seed": seed}
    results: dict[str, Any] = {}
    for name in [name for name in PAIRS if name.startswith(pair)]:
        started = time.monotonic()
        configs = configs_of(root / name.replace(",", "").replace(" ", "_"), PAIRS[name], data, options)
        with redirect_stdout(sys.stderr), connected(configs[0].ray):  # where Ray prints; stdout is for the tables
            scored = [scored_fold(config, limit) for config in configs]
        groups = scored[0][1]
        names = [*groups, *BASELINES, *CONTROLS[:-1], "oracle"]
        found = evaluate(pooled([queries for queries, _ in scored], names), names, num_bootstrap, seed)
        show(name, found, groups)
        results[name] = {**found, "same_labels": groups, "elapsed_s": round(time.monotonic() - started)}
    print(json.dumps({"pairs": results, **options, "versions": versions()}, default=float))


if __name__ == "__main__":
    typer.run(main)
