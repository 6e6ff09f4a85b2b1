"""labels/ -> embeddings/<name>/: a vector for every labelled query, which knn and both of RouteLLM's share.

It is made of the prompt, or of the bare question of queries/ (`baselines.embedding.text`). It comes from a sentence-transformers
model, from an embeddings API or, where neither is to be had, from the pair's weak model: the hidden states of its last layer,
averaged over the prompt's tokens; see embedders.py. Runs in the driver; `EmbeddingActor` runs on a Ray Data actor pool.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from firewall_ray.baselines.embedders import api_key, make_embedder, sentence_embedder
from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import torch_pool
from firewall_ray.config.baselines import EmbeddingConfig
from firewall_ray.config.models import VllmModelConfig, model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.errors import ArtifactError, ConfigError, ModelError
from firewall_ray.schemas import EMBEDDINGS
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore


def embedding_name(config: RunConfig) -> str:
    """The folder under embeddings/, which says what made the vectors: hidden_states_<model key>, or the model's own name."""
    embedding = config.baselines.embedding
    path = embedding.openai.model if embedding.openai else embedding.sentence_transformer
    if path is None:
        return f"hidden_states_{config.pair.weak}"
    # Without the hub id's owner. Two owners' models of one name share the folder; `path` in its settings tells them apart.
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.rstrip("/").rpartition("/")[2])


def run_embedding(config: RunConfig, store: ArtifactStore, prompts: pa.Table, *, force: bool = False) -> StageResult:
    """Embed `prompts` (query_id, prompt), which are rows of labels/.

    Raises ConfigError where the weak model has no folder to read hidden states from, ModelError where a model cannot be loaded.
    """
    embedding = config.baselines.embedding
    dataset = store.embeddings(embedding_name(config))
    # No batch size, device or number of actors among the settings below: they change a vector by rounding only.
    source = _source(config)
    settings = {
        "path": source.path,
        **source.said(),
        "source": "openai" if embedding.openai else "sentence_transformer" if embedding.sentence_transformer else "hidden_states",
        "max_length": embedding.max_length,
        "labels": store.labels().identity(),
        # With `labels` it names the rows: a limit takes the first of each split, so equal counts are equal rows.
        "num_prompts": len(prompts),
        # Only where it is not the prompt, so that vectors of before there was a choice stay.
        **({"text": "question"} if embedding.column == "question" else {}),
    }
    output = Output.plan("embed", dataset, settings, force=force, resumes=True)

    def write() -> dict[str, int]:
        # Read here: an actor's node may lack the variable. Never one of the settings, which the manifest shows.
        secret = api_key(embedding.openai) if embedding.openai else None
        _check_loads(source, embedding)
        rows = prompts.select(["query_id", "prompt"])
        if embedding.column == "question":
            rows = pa.table({"query_id": rows["query_id"], "prompt": questions_of(store, rows["query_id"])})
        output.begin()
        embed = ActorMap(
            key="embed",
            output=dataset,
            rows=LocalRows(rows.to_batches(), rows.schema),
            actor=EmbeddingActor,
            arguments={"source": source, "embedding": embedding, "secret": secret},
            pool=torch_pool("baselines.embedding", embedding),
            name="embedding",
        )
        run_actor_maps("embed", [embed], {"embed": len(rows) - embed.num_missing()})
        return {"queries": len(prompts)}

    return make(config, output, write)


def read_embeddings(dataset: Dataset, query_ids: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of these queries in this order, (num_queries, dimension).

    Raises ArtifactError where a query has none, or where they differ in length or hold what is not a number.
    """
    table = dataset.require().read()
    rows = pc.index_in(pa.array(query_ids, pa.string()), value_set=table["query_id"].combine_chunks())
    if rows.null_count:
        missing = query_ids[pc.index(rows.is_null(), True).as_py()]
        raise ArtifactError(f"embeddings: {dataset.path} lacks query {missing!r}. Run: {dataset.made_by} --config FILE --force")
    lengths = pc.list_value_length(table["embedding"]).unique().to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise ArtifactError(f"embeddings: {dataset.path} has vectors of {lengths} numbers; all must have the same, at least 1.")
    # float32, (num_rows, dimension) as the files have them, then (num_queries, dimension) in the order that was asked for.
    vectors = pc.list_flatten(table["embedding"]).to_numpy().reshape(-1, lengths[0])[rows.to_numpy()]
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise ArtifactError(f"embeddings: {dataset.path}: the vector of {query_ids[wrong[0]]!r} holds what is no finite number.")
    return vectors


def centred(vectors: NDArray[np.float32], is_train: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Less the mean of the training rows, and scaled to length 1; a vector that is the mean itself stays 0.

    Hidden states share one large component, next to which the differences between queries vanish in cosines.

    >>> centred(np.float32([[9, 0], [9, 2], [9, 4]]), np.array([True, True, True]))
    array([[ 0., -1.],
           [ 0.,  0.],
           [ 0.,  1.]], dtype=float32)
    """
    # float64: numpy adds along the first axis row by row, where float32 would lose digits of the component that is to go.
    differences = vectors - vectors[is_train].mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    return differences / np.where(lengths > 0, lengths, 1)


# On the actors -------------------------------------------------------------------------------------------------------


class EmbeddingActor:
    """Rows of (query_id, prompt) to rows of `schemas.EMBEDDINGS`. Loads the model once, when the actor starts."""

    def __init__(self, source: Checkpoint, embedding: EmbeddingConfig, secret: str | None, progress: Any) -> None:
        # As many as the actor reserved: torch would take every core of the node, in each actor.
        if (threads := embedding.torch_threads) is not None:
            torch.set_num_threads(threads)
        self._embed = make_embedder(source, embedding, secret)
        self._progress = progress

    def __call__(self, batch: pa.Table) -> pa.Table:
        vectors = np.asarray(self._embed(batch["prompt"].to_pylist()), dtype=np.float32)
        self._progress.add.remote("embed", {"rows": len(batch)})
        # vectors: float32, (num_rows, dimension). Cast, since the contract's lists have no fixed length: it is the model's.
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]).cast(pa.list_(pa.float32()))
        return pa.Table.from_arrays([batch["query_id"].cast(pa.string()), lists], schema=EMBEDDINGS)


# Checks --------------------------------------------------------------------------------------------------------------


def questions_of(store: ArtifactStore, query_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of queries/, in the order of `query_ids`. Raises ArtifactError naming the first that has none."""
    queries = store.queries().require(["query_id", "question"])
    table = queries.read(["query_id", "question"])
    rows = pc.index_in(query_ids, value_set=table["query_id"].combine_chunks())
    if rows.null_count:
        missing = query_ids[pc.index(rows.is_null(), True).as_py()]
        raise ArtifactError(
            f"embeddings: {queries.path} lacks query {missing.as_py()!r}, which has a label. Run: {queries.made_by} --config FILE "
            "--force; or set baselines.embedding.text to prompt."
        )
    return table["question"].take(rows)


def _source(config: RunConfig) -> Checkpoint:
    if config.baselines.embedding.openai is not None:
        return Checkpoint.at(config.baselines.embedding.openai.model)
    if config.baselines.embedding.sentence_transformer is not None:
        return Checkpoint.at(model_path(config.baselines.embedding.sentence_transformer))
    weak = config.models[config.pair.weak]
    if not isinstance(weak, VllmModelConfig):
        raise ConfigError(
            f"baselines.embedding: the weak model {config.pair.weak!r} is served elsewhere, so its hidden states cannot be read. "
            "Name a sentence-transformers model in baselines.embedding.sentence_transformer."
        )
    return Checkpoint.of(weak)


def _check_loads(source: Checkpoint, embedding: EmbeddingConfig) -> None:
    """In the driver, before actors start: an error in an actor's start reads as that actor's death."""
    if embedding.openai is not None:
        return
    if embedding.sentence_transformer is not None:
        sentence_embedder(source.path, embedding.model_copy(update={"device": "cpu"}))
        return
    try:
        source.tokenizer()
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, JSON and Rust errors here
        raise ModelError(
            f"baselines.embedding: the weak model's tokenizer cannot be loaded from {source.tokenizer_path!r}: "
            f"{str(e).strip().splitlines()[0]} "
            "Give a Hugging Face folder that every node sees, or a hub id that this machine can reach."
        ) from e
