"""samples/ -> baselines/qualities/<model>/ -> baselines/hybrid_llm_labels/: what the routers of Hybrid LLM are trained on.

Only the train and validation splits are scored: nothing else needs these labels. Runs in the driver; `QualityActor` runs on a Ray
Data actor pool. The responses lie on the driver's local disk, see hybrid_llm_responses.py.
"""

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from firewall_ray.baselines.bart_score import BartScorer, load_bart_tokenizer, train_small_bart
from firewall_ray.baselines.hybrid_llm import best_threshold, deterministic_label, probability_within, quality_gaps
from firewall_ray.baselines.hybrid_llm_responses import PAIRS, read_responses, training_pairs
from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import torch_pool
from firewall_ray.config.baselines import BartScoreConfig
from firewall_ray.config.models import model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.router.predict import local_copy
from firewall_ray.schemas import HYBRID_LABELS, QUALITIES
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore

LABEL_COLUMNS = ["query_id", "task", "split", "prompt", "pass_rate_weak", "pass_rate_strong"]
logger = logging.getLogger("firewall_ray")


def run_hybrid_labels(config: RunConfig, store: ArtifactStore, labelled: pa.Table, *, force: bool = False) -> list[StageResult]:
    """Write the labels of Hybrid LLM for the train and validation rows of `labelled` (LABEL_COLUMNS), and all that they need.

    Raises ConfigError for a task without reference texts, ModelError for a BART that cannot be loaded, ArtifactError for a query
    without samples.
    """
    rows = labelled.select(LABEL_COLUMNS).filter(pc.is_in(labelled["split"], pa.array(["train", "validation"])))
    keys = (config.pair.weak, config.pair.strong)

    @functools.cache
    def responses() -> dict[str, LocalRows]:
        """Of both models, before anything is made of either: what is missing shows now. Not made where all is finished."""
        baselines = config.baselines
        how_many = baselines.bart_score.max_references, baselines.hybrid_llm.num_responses
        return {key: read_responses(store, key, rows, *how_many) for key in keys}

    results = []
    if config.baselines.bart_score.path is None:
        results.append(_run_small_bart(config, store, responses, rows, force=force))
    outputs = {key: store.baseline(f"qualities/{key}", QUALITIES) for key in keys}
    results += [run_qualities(config, store, key, outputs[key], responses, len(rows), force=force) for key in keys]
    return [*results, _run_labels(config, store, rows, force=force)]


# Stages --------------------------------------------------------------------------------------------------------------


def _run_small_bart(
    config: RunConfig, store: ArtifactStore, responses: Callable[[], Mapping[str, LocalRows]], rows: pa.Table, *, force: bool
) -> StageResult:
    """baselines/bart: a small BART trained on every distinct response of both models in the train split, in the driver."""
    settings, dataset = config.baselines.bart_score, _small_bart(store)
    num_responses = config.baselines.hybrid_llm.num_responses
    wanted = {"bart": _trained(settings), "inputs": _inputs(config, store), "num_queries": len(rows), "responses": num_responses}
    output = Output.plan("bart_score", dataset, wanted, force=force)

    def write() -> dict[str, float]:
        weak, strong = (responses()[key] for key in (config.pair.weak, config.pair.strong))
        pairs = training_pairs(weak, strong, pc.equal(rows["split"], "train").to_numpy())
        logger.info("bart_score: training a small BART on %s responses", f"{len(pairs):,}")
        output.begin()
        with tempfile.TemporaryDirectory() as folder:
            batches = (tuple(batch[name].to_pylist() for name in PAIRS.names) for batch in pairs.batches())
            loss = train_small_bart(batches, settings, Path(folder))
            for file in sorted(Path(folder).iterdir()):
                dataset.add_file(file, file.name)
        return {"responses": len(pairs), "loss": round(loss, 4)}

    return make(config, output, write)


def run_qualities(
    config: RunConfig,
    store: ArtifactStore,
    key: str,
    dataset: Dataset,
    responses: Callable[[], Mapping[str, LocalRows]],
    num_queries: int,
    *,
    force: bool,
) -> StageResult:
    """The BARTScore of every response of a model, into `dataset` (QUALITIES).

    responses: as from `read_responses`, by model, of `num_queries` queries; asked only where they are not all scored. `num_queries`
    and the inputs tell which queries these are, so of one dataset they must follow from the two.
    """
    settings = config.baselines.bart_score
    source: str | Dataset = _small_bart(store) if settings.path is None else model_path(settings.path)
    wanted = {
        "bart": source.identity() if isinstance(source, Dataset) else source,
        "max_length": settings.max_length,
        "max_references": settings.max_references,
        "num_responses": config.baselines.hybrid_llm.num_responses,
        "inputs": [store.queries().identity(), store.samples(key).identity(), store.labels().identity()],
        "num_queries": num_queries,
    }
    output = Output.plan("qualities", dataset, wanted, force=force, resumes=True, model=key)

    def write() -> dict[str, int]:
        if isinstance(source, str):
            load_bart_tokenizer(source)  # before actors start: an error in an actor's start reads as that actor's death
        rows = responses()[key]
        output.begin()
        qualities = ActorMap(
            key="qualities",
            output=dataset,
            rows=rows,
            actor=QualityActor,
            arguments={"source": source, "settings": settings},
            pool=torch_pool("baselines.bart_score", settings),
            name=f"the BARTScore of {key}",
        )
        run_actor_maps("qualities", [qualities], {"qualities": num_queries - qualities.num_missing()})
        return {"queries": num_queries}

    return make(config, output, write)


def _run_labels(config: RunConfig, store: ArtifactStore, rows: pa.Table, *, force: bool) -> StageResult:
    qualities = [store.baseline(f"qualities/{key}", QUALITIES) for key in (config.pair.weak, config.pair.strong)]
    wanted = {"qualities": [dataset.identity() for dataset in qualities], "labels": store.labels().identity()}
    output = Output.plan("hybrid_llm_labels", hybrid_labels(store), wanted, force=force)

    def write() -> dict[str, float]:
        weak, strong = (dataset.require().read() for dataset in qualities)
        weak, strong = (table.take(pc.index_in(rows["query_id"], table["query_id"].combine_chunks())) for table in (weak, strong))
        of_weak, of_strong = (_arrays(table["qualities"]) for table in (weak, strong))
        gaps = quality_gaps(of_weak, of_strong)
        is_train = pc.equal(rows["split"], "train").to_numpy()
        threshold = best_threshold([gaps[i] for i in np.flatnonzero(is_train)])
        probabilities = probability_within(gaps, [0, threshold]).astype(np.float32)
        columns = {
            "hybrid_llm_det": deterministic_label(of_weak, of_strong),
            "hybrid_llm_prob": probabilities[:, 0],
            "hybrid_llm_trans": probabilities[:, 1],
        }
        output.begin()
        with output.dataset.writer() as writer:
            writer.write_table(pa.table({**{name: rows[name] for name in LABEL_COLUMNS}, **columns}, schema=HYBRID_LABELS))
        return {"labels": len(rows), "t_star": threshold}

    return make(config, output, write)


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


def _inputs(config: RunConfig, store: ArtifactStore) -> list[str]:
    datasets = [store.queries(), store.labels(), store.samples(config.pair.weak), store.samples(config.pair.strong)]
    return [dataset.identity() for dataset in datasets]


def _trained(settings: BartScoreConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"replicas", "device", "num_cpus", "max_references"})


def _small_bart(store: ArtifactStore) -> Dataset:
    return store.baseline("bart", pa.schema([]))


def _arrays(lists: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(each, dtype=np.float32) for each in lists.to_pylist()]
