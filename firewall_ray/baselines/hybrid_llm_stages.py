"""samples/ -> baselines/qualities/<model>/ -> baselines/hybrid_llm_labels/: what the routers of Hybrid LLM are trained on.

Only the train and validation splits are scored: nothing else needs these labels. Runs in the driver; `QualityActor` runs on a Ray
Data actor pool.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from firewall_ray.baselines.bart_score import BartScorer, load_bart_tokenizer, train_small_bart
from firewall_ray.baselines.hybrid_llm import best_threshold, deterministic_label, probability_within, quality_gaps
from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import torch_pool
from firewall_ray.config.baselines import BartScoreConfig
from firewall_ray.config.models import model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError
from firewall_ray.router.predict import local_copy
from firewall_ray.schemas import HYBRID_LABELS, QUALITIES
from firewall_ray.stages.stage import StageResult
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore

SAMPLE_COLUMNS = ["query_id", "texts", "greedy_text"]
LABEL_COLUMNS = ["query_id", "task", "split", "prompt", "pass_rate_weak", "pass_rate_strong"]

logger = logging.getLogger("firewall_ray")


def run_hybrid_labels(config: RunConfig, store: ArtifactStore, labelled: pa.Table, *, force: bool = False) -> list[StageResult]:
    """Write the labels of Hybrid LLM for the train and validation rows of `labelled` (LABEL_COLUMNS), and all that they need.

    Raises ConfigError for a task without reference texts, ModelError for a BART that cannot be loaded, ArtifactError for a query
    without samples.
    """
    rows = labelled.select(LABEL_COLUMNS).filter(pc.is_in(labelled["split"], pa.array(["train", "validation"])))
    keys = (config.pair.weak, config.pair.strong)
    responses = {key: _responses(store, key, rows, config.baselines.bart_score.max_references) for key in keys}
    results = []
    if config.baselines.bart_score.path is None:
        results.append(_run_small_bart(config, store, responses, rows, force=force))
    results += [_run_qualities(config, store, key, responses[key], force=force) for key in keys]
    return [*results, _run_labels(config, store, rows, force=force)]


def reference_texts(task: str, reference: Mapping[str, Any]) -> list[str]:
    """The texts that a right response may read like: a query's aliases, or its answer. Raises ConfigError where there are none.

    >>> reference_texts("gsm8k", {"answer": "18"}), reference_texts("triviaqa", {"aliases": ["Nile", "River Nile"]})
    (['18'], ['Nile', 'River Nile'])
    """
    found = reference.get("aliases", reference.get("answer"))
    texts = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"baselines.names: Hybrid LLM compares responses with reference texts, and task {task!r} has none (its references hold "
            f"{sorted(reference)}). Leave hybrid_llm_det, hybrid_llm_prob and hybrid_llm_trans out, or train on other tasks."
        )
    return texts


# Stages --------------------------------------------------------------------------------------------------------------


def _run_small_bart(
    config: RunConfig, store: ArtifactStore, responses: Mapping[str, pa.Table], rows: pa.Table, *, force: bool
) -> StageResult:
    """baselines/bart: a small BART trained on every distinct response of both models in the train split, in the driver."""
    settings, output = config.baselines.bart_score, _small_bart(store)
    wanted = {"bart": _trained(settings), "inputs": _inputs(config, store), "num_queries": len(rows)}
    result = {"stage": "bart_score", "path": output.path}
    if output.plan(wanted, force=force) == "skip":
        return {**result, "action": "skip", **output.manifest()["counts"]}
    train_ids = rows.filter(pc.equal(rows["split"], "train"))["query_id"].combine_chunks()
    pairs: dict[tuple[str, str, str], None] = {}  # in order, so that equal inputs train equal networks
    for table in responses.values():
        for row in table.filter(pc.is_in(table["query_id"], train_ids)).to_pylist():
            pairs |= dict.fromkeys((row["query_id"], text, row["references"][0]) for text in row["texts"])
    logger.info("bart_score: training a small BART on %s responses", f"{len(pairs):,}")
    output.begin(wanted)
    with tempfile.TemporaryDirectory() as folder:
        loss = train_small_bart([text for _, text, _ in pairs], [reference for _, _, reference in pairs], settings, Path(folder))
        for file in sorted(Path(folder).iterdir()):
            output.add_file(file, file.name)
    counts = {"responses": len(pairs), "loss": round(loss, 4)}
    output.finish(config.model_dump(mode="json"), counts)
    return {**result, "action": "run", **counts}


def _run_qualities(config: RunConfig, store: ArtifactStore, key: str, rows: pa.Table, *, force: bool) -> StageResult:
    """baselines/qualities/<model key>: the BARTScore of every response."""
    settings, output = config.baselines.bart_score, store.baseline(f"qualities/{key}", QUALITIES)
    source: str | Dataset = _small_bart(store) if settings.path is None else model_path(settings.path)
    wanted = {
        "bart": source.identity() if isinstance(source, Dataset) else source,
        "max_length": settings.max_length,
        "max_references": settings.max_references,
        "inputs": [store.queries().identity(), store.samples(key).identity(), store.labels().identity()],
        "num_queries": len(rows),
    }
    result = {"stage": "qualities", "model": key, "path": output.path}
    action = output.plan(wanted, force=force)
    if action == "skip":
        return {**result, "action": action, **output.manifest()["counts"]}
    if isinstance(source, str):
        load_bart_tokenizer(source)  # before actors start: an error in an actor's start reads as that actor's death
    output.begin(wanted, keep_files=action == "resume")
    qualities = ActorMap(
        key="qualities",
        output=output,
        rows=LocalRows(rows.to_batches(), rows.schema),
        actor=QualityActor,
        arguments={"source": source, "settings": settings},
        pool=torch_pool("baselines.bart_score", settings),
        name=f"the BARTScore of {key}",
    )
    run_actor_maps("qualities", [qualities], {"qualities": len(rows) - qualities.num_missing()})
    counts = {"queries": len(rows)}
    output.finish(config.model_dump(mode="json"), counts)
    return {**result, "action": action, **counts}


def _run_labels(config: RunConfig, store: ArtifactStore, rows: pa.Table, *, force: bool) -> StageResult:
    output = hybrid_labels(store)
    qualities = [store.baseline(f"qualities/{key}", QUALITIES) for key in (config.pair.weak, config.pair.strong)]
    wanted = {"qualities": [dataset.identity() for dataset in qualities], "labels": store.labels().identity()}
    result = {"stage": "hybrid_llm_labels", "path": output.path}
    if output.plan(wanted, force=force) == "skip":
        return {**result, "action": "skip", **output.manifest()["counts"]}
    weak, strong = (dataset.require().read() for dataset in qualities)
    weak, strong = (table.take(pc.index_in(rows["query_id"], table["query_id"].combine_chunks())) for table in (weak, strong))
    gaps = quality_gaps(_arrays(weak["qualities"]), _arrays(strong["qualities"]))
    is_train = pc.equal(rows["split"], "train").to_numpy()
    threshold = best_threshold([gaps[i] for i in np.flatnonzero(is_train)])
    probabilities = probability_within(gaps, [0, threshold]).astype(np.float32)
    columns = {
        "hybrid_llm_det": deterministic_label(weak["greedy_quality"].to_numpy(), strong["greedy_quality"].to_numpy()),
        "hybrid_llm_prob": probabilities[:, 0],
        "hybrid_llm_trans": probabilities[:, 1],
    }
    output.begin(wanted)
    with output.writer() as writer:
        writer.write_table(pa.table({**{name: rows[name] for name in LABEL_COLUMNS}, **columns}, schema=HYBRID_LABELS))
    counts = {"labels": len(rows), "t_star": threshold}
    output.finish(config.model_dump(mode="json"), counts)
    return {**result, "action": "run", **counts}


def hybrid_labels(store: ArtifactStore) -> Dataset:
    return store.baseline("hybrid_llm_labels", HYBRID_LABELS)


class QualityActor:
    """Rows of (query_id, texts, greedy_text, references) to rows of QUALITIES. Loads the BART once, when the actor starts."""

    def __init__(self, source: str | Dataset, settings: BartScoreConfig, progress: Any) -> None:
        if (threads := settings.torch_threads) is not None:
            torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as cache:
            self._scorer = BartScorer(local_copy(source, cache) if isinstance(source, Dataset) else source, settings)
        self._progress = progress

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        # A sure model answers in the same words many times over: each text is scored once.
        pairs = list(
            dict.fromkeys(
                (text, reference) for row in rows for text in (*row["texts"], row["greedy_text"]) for reference in row["references"]
            )
        )
        scores = self._scorer.score([text for text, _ in pairs], [reference for _, reference in pairs])
        score_of = dict(zip(pairs, scores.tolist(), strict=True))
        scored = []
        for row in rows:
            nearest = {text: max(score_of[text, r] for r in row["references"]) for text in {*row["texts"], row["greedy_text"]}}
            qualities = [nearest[text] for text in row["texts"]]
            scored.append({"query_id": row["query_id"], "qualities": qualities, "greedy_quality": nearest[row["greedy_text"]]})
        self._progress.add.remote("qualities", {"rows": len(rows)})
        return pa.Table.from_pylist(scored, schema=QUALITIES)


# Inputs --------------------------------------------------------------------------------------------------------------


def _responses(store: ArtifactStore, key: str, rows: pa.Table, max_references: int) -> pa.Table:
    """The model's samples of these queries, with the texts that they are compared with: SAMPLE_COLUMNS and `references`."""
    samples = store.samples(key).require(SAMPLE_COLUMNS)
    table = samples.read(SAMPLE_COLUMNS)
    found = pc.index_in(rows["query_id"], table["query_id"].combine_chunks())
    if found.null_count:
        missing = rows["query_id"][pc.index(found.is_null(), True).as_py()].as_py()
        raise ArtifactError(
            f"samples: {samples.path} lacks query {missing!r}, which has a label ({found.null_count:,} such). Hybrid LLM needs the "
            "responses themselves: run python jobs/sample.py, or leave it out of baselines.names."
        )
    queries = store.queries().require(["query_id", "reference"]).read(["query_id", "reference"])
    references = queries["reference"].take(pc.index_in(rows["query_id"], queries["query_id"].combine_chunks())).to_pylist()
    texts = [
        reference_texts(task, json.loads(reference))[:max_references]
        for task, reference in zip(rows["task"].to_pylist(), references, strict=True)
    ]
    return table.take(found).append_column("references", pa.array(texts, pa.list_(pa.string())))


def _inputs(config: RunConfig, store: ArtifactStore) -> list[str]:
    datasets = [store.queries(), store.labels(), store.samples(config.pair.weak), store.samples(config.pair.strong)]
    return [dataset.identity() for dataset in datasets]


def _trained(settings: BartScoreConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"replicas", "device", "num_cpus", "max_references"})


def _small_bart(store: ArtifactStore) -> Dataset:
    return store.baseline("bart", pa.schema([]))


def _arrays(lists: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(each, dtype=np.float32) for each in lists.to_pylist()]
