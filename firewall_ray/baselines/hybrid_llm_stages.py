"""samples/ -> baselines/qualities/<model>/ -> baselines/hybrid_llm_labels/: what the routers of Hybrid LLM are trained on.

Only the train and validation splits are scored: nothing else needs these labels. Runs in the driver; `QualityActor` runs on a Ray
Data actor pool. The responses are most of the bytes of a run: they lie on the driver's local disk, in the labels' order, and never
more than a block of them in its memory.
"""

import functools
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from firewall_ray.baselines.bart_score import BartScorer, load_bart_tokenizer, train_small_bart
from firewall_ray.baselines.hybrid_llm import best_threshold, deterministic_label, probability_within, quality_gaps
from firewall_ray.cluster.actor_map import ActorMap, run_actor_maps
from firewall_ray.cluster.pool import torch_pool
from firewall_ray.config.baselines import BartScoreConfig
from firewall_ray.config.models import model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError
from firewall_ray.router.predict import local_copy
from firewall_ray.schemas import HYBRID_LABELS, QUALITIES, SAMPLES
from firewall_ray.stages.stage import Output, StageResult, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import MAX_BUCKETS, READ_ROWS, LocalRows, Spill, num_buckets, spill_folder
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import IDS

SAMPLE_COLUMNS = ["query_id", "texts", "greedy_text"]
LABEL_COLUMNS = ["query_id", "task", "split", "prompt", "pass_rate_weak", "pass_rate_strong"]
PLACE = pa.field("place", pa.int64(), nullable=False)
RESPONSES = pa.schema([*(SAMPLES.field(name) for name in SAMPLE_COLUMNS), pa.field("references", pa.list_(pa.string()))])
PAIRS = pa.schema([pa.field("response", pa.string()), pa.field("reference", pa.string())])

BLOCK_TEXTS = 262_144  # in memory at once, some 80 MB of 300 characters each; above 67 million, in MAX_BUCKETS blocks, more
BATCH_ROWS = 512  # rows of samples in a batch; with 32 long texts a row is some 30 kB
BATCH_PAIRS = 4_096

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
        return {key: read_responses(store, key, rows, config.baselines.bart_score.max_references) for key in keys}

    results = []
    if config.baselines.bart_score.path is None:
        results.append(_run_small_bart(config, store, responses, rows, force=force))
    results += [_run_qualities(config, store, key, responses, len(rows), force=force) for key in keys]
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
    config: RunConfig, store: ArtifactStore, responses: Callable[[], Mapping[str, LocalRows]], rows: pa.Table, *, force: bool
) -> StageResult:
    """baselines/bart: a small BART trained on every distinct response of both models in the train split, in the driver."""
    settings, dataset = config.baselines.bart_score, _small_bart(store)
    wanted = {"bart": _trained(settings), "inputs": _inputs(config, store), "num_queries": len(rows)}
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


def _run_qualities(
    config: RunConfig,
    store: ArtifactStore,
    key: str,
    responses: Callable[[], Mapping[str, LocalRows]],
    num_queries: int,
    *,
    force: bool,
) -> StageResult:
    """baselines/qualities/<model key>: the BARTScore of every response."""
    settings, dataset = config.baselines.bart_score, store.baseline(f"qualities/{key}", QUALITIES)
    source: str | Dataset = _small_bart(store) if settings.path is None else model_path(settings.path)
    wanted = {
        "bart": source.identity() if isinstance(source, Dataset) else source,
        "max_length": settings.max_length,
        "max_references": settings.max_references,
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
        gaps = quality_gaps(_arrays(weak["qualities"]), _arrays(strong["qualities"]))
        is_train = pc.equal(rows["split"], "train").to_numpy()
        threshold = best_threshold([gaps[i] for i in np.flatnonzero(is_train)])
        probabilities = probability_within(gaps, [0, threshold]).astype(np.float32)
        columns = {
            "hybrid_llm_det": deterministic_label(weak["greedy_quality"].to_numpy(), strong["greedy_quality"].to_numpy()),
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


def read_responses(store: ArtifactStore, key: str, rows: pa.Table, max_references: int) -> LocalRows:
    """The model's samples of these queries, with the texts that they are compared with: RESPONSES, in the order of `rows`."""
    samples = store.samples(key).require(SAMPLE_COLUMNS)
    queries = store.queries().require(["query_id", "reference"])
    leave_out = "or leave it out of baselines.names."
    own = f"Hybrid LLM needs the responses themselves: run python jobs/sample.py, {leave_out}"
    places = places_of(samples, rows["query_id"], own)
    places_of_queries = places_of(queries, rows["query_id"], f"Hybrid LLM needs its reference: run {queries.made_by}, {leave_out}")
    count = _num_blocks(samples)

    def joined(folder: Path) -> Iterator[pa.RecordBatch]:
        of_samples = in_places(samples, SAMPLE_COLUMNS, places, len(rows), count, folder / "samples")
        of_queries = in_places(queries, ["query_id", "reference"], places_of_queries, len(rows), count, folder / "queries")
        first = 0
        for batch, references in zip(of_samples, of_queries, strict=True):
            tasks = rows["task"][first : first + batch.num_rows].to_pylist()
            texts = [
                reference_texts(task, json.loads(reference))[:max_references]
                for task, reference in zip(tasks, references["reference"].to_pylist(), strict=True)
            ]
            yield pa.record_batch([*batch.columns, pa.array(texts, RESPONSES.field("references").type)], RESPONSES)
            first += batch.num_rows

    with spill_folder() as folder:
        return LocalRows(joined(folder), RESPONSES)


def training_pairs(weak: LocalRows, strong: LocalRows, is_train: NDArray[np.bool_]) -> LocalRows:
    """PAIRS: each distinct response to a query with the query's first reference. The weak model's, then what only the strong says.

    weak, strong: rows of RESPONSES of the same queries in the same order. is_train: which of them count, (num_queries,). The pairs
    come in an order of their own, so that equal inputs train equal networks.
    """

    def pairs() -> Iterator[dict[str, str]]:
        for row in itertools.compress(_rows(weak, ["texts", "references"]), is_train):
            yield from ({"response": text, "reference": row["references"][0]} for text in dict.fromkeys(row["texts"]))
        both = zip(_rows(weak, ["texts"]), _rows(strong, ["texts", "references"]), strict=True)
        for of_weak, row in itertools.compress(both, is_train):
            said = set(of_weak["texts"])
            new = (text for text in dict.fromkeys(row["texts"]) if text not in said)
            yield from ({"response": text, "reference": row["references"][0]} for text in new)

    def batches() -> Iterator[pa.RecordBatch]:
        every = pairs()
        while batch := list(itertools.islice(every, BATCH_PAIRS)):
            yield pa.RecordBatch.from_pylist(batch, PAIRS)

    return LocalRows(batches(), PAIRS)


def _rows(local: LocalRows, columns: list[str]) -> Iterator[dict[str, Any]]:
    return (row for batch in local.batches(columns) for row in batch.to_pylist())


def places_of(dataset: Dataset, query_ids: pa.ChunkedArray, advice: str) -> NDArray[np.int64]:
    """Where each row of the dataset stands in `query_ids`: int64, (num_rows,); -1 for other ids, and for a second row of an id.

    Ids are compared a bucket at a time. Raises ArtifactError naming the first query that has no row.
    """
    schema = IDS.append(PLACE)
    places = np.full(dataset.num_rows(), -1)
    num_missing, first_missing = 0, len(query_ids)
    count = num_buckets(max(len(places), len(query_ids)))
    with spill_folder() as folder:
        rows = _numbered((batch["query_id"] for batch in dataset.iter_batches(["query_id"], READ_ROWS)), schema)
        slices = (query_ids.slice(start, READ_ROWS).combine_chunks() for start in range(0, len(query_ids), READ_ROWS))
        there = Spill(rows, schema, count, folder / "rows")
        wanted = Spill(_numbered(slices, schema), schema, count, folder / "wanted")
        for number in range(count):
            of_dataset, asked = there.bucket(number), wanted.bucket(number)
            found = pc.index_in(asked["query_id"], of_dataset["query_id"].combine_chunks()).fill_null(-1).to_numpy()
            place, lost = asked["place"].to_numpy(), found < 0
            places[of_dataset["place"].to_numpy()[found[~lost]]] = place[~lost]
            num_missing += int(lost.sum())
            first_missing = min([first_missing, *place[lost][:1].tolist()])
    if num_missing:
        raise ArtifactError(
            f"{dataset.kind}: {dataset.path} lacks query {query_ids[first_missing].as_py()!r}, which has a label ({num_missing:,} "
            f"such). {advice}"
        )
    return places


def in_places(
    dataset: Dataset, columns: list[str], places: NDArray[np.int64], num_places: int, count: int, folder: Path
) -> Iterator[pa.RecordBatch]:
    """The rows that have a place, in the order of their places, as batches of BATCH_ROWS; in memory: one of `count` blocks.

    places: of each row of the dataset, as from `places_of`, each of the num_places once.
    """

    def placed() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in dataset.iter_batches(columns, BATCH_ROWS):
            place = places[first : first + batch.num_rows]
            yield batch.append_column(PLACE, pa.array(place)).filter(pa.array(place >= 0))
            first += batch.num_rows

    schema = pa.schema([*(dataset.schema.field(name) for name in columns), PLACE])
    spill = Spill(placed(), schema, count, folder, lambda batch: batch["place"].to_numpy() * count // num_places)
    for number, path in enumerate(spill.paths):
        block = spill.bucket(number).combine_chunks()
        path.unlink()
        order = np.argsort(block["place"].to_numpy())
        for start in range(0, len(order), BATCH_ROWS):
            yield from block.select(columns).take(order[start : start + BATCH_ROWS]).combine_chunks().to_batches()


def _num_blocks(samples: Dataset) -> int:
    """Of about BLOCK_TEXTS sampled texts each."""
    num_texts = 0
    for footer in samples.footers().values():
        for group in map(footer.row_group, range(footer.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            num_texts += sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == "texts")
    return min(max(-(-num_texts // BLOCK_TEXTS), 1), MAX_BUCKETS)


def _numbered(columns: Iterator[pa.Array], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    first = 0
    for ids in columns:
        yield pa.record_batch([ids, np.arange(first, first + len(ids))], schema)
        first += len(ids)


def _inputs(config: RunConfig, store: ArtifactStore) -> list[str]:
    datasets = [store.queries(), store.labels(), store.samples(config.pair.weak), store.samples(config.pair.strong)]
    return [dataset.identity() for dataset in datasets]


def _trained(settings: BartScoreConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"replicas", "device", "num_cpus", "max_references"})


def _small_bart(store: ArtifactStore) -> Dataset:
    return store.baseline("bart", pa.schema([]))


def _arrays(lists: pa.ChunkedArray) -> list[np.ndarray]:
    return [np.asarray(each, dtype=np.float32) for each in lists.to_pylist()]
