"""labels/ and samples/ -> scores/<baseline>/, for every baseline of `baselines.names`: what jobs/baselines.py does.

Runs in the driver, one baseline after another, those that train nothing first. Finished ones are skipped; what the others need
(embeddings, qualities, routers) goes on where it stopped.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from firewall_ray.baselines.embedders import api_key
from firewall_ray.baselines.embeddings import centred, embedding_name, read_embeddings, run_embedding
from firewall_ray.baselines.hybrid_llm_stages import hybrid_labels, run_hybrid_labels
from firewall_ray.baselines.knn import knn_scores
from firewall_ray.baselines.margin_sampling import margin_scores
from firewall_ray.baselines.routellm_mf import mf_scores, published_scores
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError
from firewall_ray.schemas import HYBRID_DESIGNS, SCORES, SPLITS
from firewall_ray.stages.prepare_queries import check_splits
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import check_unique

# Pass rates are what routellm_mf and Hybrid LLM's training read, soft_block what knn averages.
LABEL_COLUMNS = ["query_id", "task", "split", "prompt", "pass_rate_weak", "pass_rate_strong", "soft_block"]
ON_EMBEDDINGS = ("knn", "routellm_mf", "routellm_mf_published")

logger = logging.getLogger("firewall_ray")


def run_baselines(config: RunConfig, store: ArtifactStore, *, limit: int | None = None, force: bool = False) -> list[StageResult]:
    """Score every labelled query with every baseline. One result a stage, `baselines` for a finished one.

    limit: only the first N rows of each split, though the routers of Hybrid LLM score all of them. Raises what the stages raise:
    see margin_sampling, embeddings, knn, routellm_mf, hybrid_llm_stages, stages.train_router and stages.score.
    """
    labelled = read_labelled(store, limit)
    names = config.baselines.names
    results = []
    if "margin_sampling" in names:
        results.append(_run_margin_sampling(config, store, labelled, force=force))
    if of_embeddings := [name for name in ON_EMBEDDINGS if name in names]:
        results.append(run_embedding(config, store, labelled, force=force))
        results += [_run_on_embeddings(config, store, name, labelled, force=force) for name in of_embeddings]
    if designs := [name for name in HYBRID_DESIGNS if name in names]:
        results += run_hybrid_labels(config, store, labelled, force=force)
        # Our own encoder on their labels, for as long as their paper trains: they have the same DeBERTa.
        router = config.router.model_copy(update={"epochs": config.baselines.hybrid_llm.epochs})
        trained = config.model_copy(update={"router": router})
        results.append(run_training(trained, store, labels=hybrid_labels(store), designs=designs, limit=limit, force=force))
        results.append(run_scoring(config, store, designs=designs, force=force))
    return results


def check_key(config: RunConfig) -> None:
    """Raises ConfigError where embeddings are to be bought and their key is not set: before a day of sampling, not after it."""
    api = config.baselines.embedding.openai
    if api is not None and set(ON_EMBEDDINGS) & set(config.baselines.names):
        api_key(api)


def read_labelled(store: ArtifactStore, limit: int | None = None) -> pa.Table:
    """LABEL_COLUMNS of labels/, the first `limit` rows of each split; checked: one row a query, no unknown split, some rows."""
    dataset = store.labels().require(LABEL_COLUMNS)
    table = dataset.read(LABEL_COLUMNS)
    where = f"labels: {dataset.path}"
    if not len(table):
        raise ArtifactError(f"{where} has no rows. Run: {dataset.made_by} --config FILE --force")
    check_unique(table["query_id"], where)
    check_splits(table, where)
    if limit is None:
        return table
    # Of each split, since the first rows of labels/ may all be of one, and knn and routellm_mf need train and validation.
    splits = _texts(table["split"])
    kept = np.concatenate([np.flatnonzero(splits == split)[:limit] for split in SPLITS])
    return table.take(pa.array(np.sort(kept)))


def describe(name: str, config: RunConfig) -> str:
    """What a baseline is called in tables: its name, and what stands in for a model that the config does without.

    Any other name is returned as it is.
    """
    # A table must not pass a stand-in off as the published method: RouteLLM's embeds with an API, Hybrid LLM's BART is large.
    source = config.baselines.embedding
    embedding = source.openai.model if source.openai else source.sentence_transformer
    embedding = embedding or f"{config.pair.weak} model's mean hidden states"
    bart = "" if config.baselines.bart_score.path else ", small BART from scratch"
    titles = {
        "margin_sampling": "Margin Sampling",
        "knn": f"kNN ({embedding})",
        "routellm_mf": f"RouteLLM MF (trained here; {embedding})",
        "routellm_mf_published": f"RouteLLM MF (its weights; {embedding})",
        "hybrid_llm_det": f"Hybrid LLM (deterministic{bart})",
        "hybrid_llm_prob": f"Hybrid LLM (probabilistic{bart})",
        "hybrid_llm_trans": f"Hybrid LLM (transformed{bart})",
    }
    return titles.get(name, name)


# Stages --------------------------------------------------------------------------------------------------------------


def _run_margin_sampling(config: RunConfig, store: ArtifactStore, labelled: pa.Table, *, force: bool) -> StageResult:
    samples = store.samples(config.pair.weak).require(["query_id", "greedy_margin"])
    settings = {"samples": samples.identity(), "labels": store.labels().identity(), "num_queries": len(labelled)}
    output = _planned(store, "margin_sampling", settings, force=force)

    def write() -> dict[str, Any]:
        margins = samples.read(["query_id", "greedy_margin"])
        return _write(output, margin_scores(labelled["query_id"], margins, f"samples: {samples.path}"))

    return make(config, output, write)


def _run_on_embeddings(config: RunConfig, store: ArtifactStore, name: str, labelled: pa.Table, *, force: bool) -> StageResult:
    """One of ON_EMBEDDINGS."""
    embeddings = store.embeddings(embedding_name(config))
    section = getattr(config.baselines, name)
    settings = {
        "embeddings": embeddings.identity(),
        "labels": store.labels().identity(),
        "num_queries": len(labelled),
        name: section.model_dump(mode="json"),
    }
    output = _planned(store, name, settings, force=force)

    def write() -> dict[str, Any]:
        splits = _texts(labelled["split"])
        vectors = read_embeddings(embeddings, labelled["query_id"].to_pylist())  # (num_queries, dim)
        facts: dict[str, Any] = {}
        if name == "routellm_mf_published":
            # Not centred: their projection was trained on the API's vectors as they are.
            p_weak = published_scores(vectors, section)
        elif name == "knn":
            vectors = centred(vectors, splits == "train")
            # The mean of soft_block over neighbours estimates the same probability as our router trained on it.
            found = knn_scores(vectors, labelled["soft_block"].to_numpy(), splits, section.num_neighbours)
            p_weak, facts["num_neighbours"] = found.p_weak, found.num_neighbours
        else:
            weak, strong = (labelled[f"pass_rate_{role}"].to_numpy() for role in ("weak", "strong"))
            p_weak = mf_scores(centred(vectors, splits == "train"), weak, strong, splits, section)
        return {**_write(output, pa.table([labelled["query_id"], pa.array(p_weak)], schema=SCORES)), **facts}

    return make(config, output, write)


def _planned(store: ArtifactStore, name: str, settings: Mapping[str, Any], *, force: bool) -> Output:
    return Output.plan("baselines", store.scores(name), settings, force=force, baseline=name)


def _write(output: Output, scores: pa.Table) -> dict[str, Any]:
    output.begin()
    with output.dataset.writer() as writer:
        writer.write_table(scores)
    return {"queries": len(scores)}


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.str_)
