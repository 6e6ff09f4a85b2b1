"""samples/ and queries/ -> what Hybrid LLM compares: each labelled query's responses beside its reference texts.

The responses are most of the bytes of a run. They are joined and put in the labels' order on the driver's local disk, with a block
of them in its memory and 8 bytes a row.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firewall_ray.errors import ArtifactError, ConfigError
from firewall_ray.schemas import SAMPLES
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.joins import MAX_BUCKETS, READ_ROWS, LocalRows, Spill, num_buckets, spill_folder
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.query_ids import IDS

SAMPLE_COLUMNS = ["query_id", "texts", "greedy_text"]
PLACE = pa.field("place", pa.int64(), nullable=False)
RESPONSES = pa.schema([*(SAMPLES.field(name) for name in SAMPLE_COLUMNS), pa.field("references", pa.list_(pa.string()))])
PAIRS = pa.schema([pa.field("response", pa.string()), pa.field("reference", pa.string())])

# A solution with its reasoning, of GSM8K and HumanEval; TriviaQA's names with their capitals; else what the grader compares with. A
# BART scores the likelihood of a whole text: of a bare number, or of lower case, it would say little about a response that reasons.
REFERENCE_FIELDS = ("solution", "canonical_solution", "names", "aliases", "answer")

BLOCK_TEXTS = 262_144  # in memory at once, some 80 MB of 300 characters each; above 67 million, in MAX_BUCKETS blocks, more
BATCH_ROWS = 512  # rows of samples in a batch; with 32 long texts a row is some 30 kB
BATCH_PAIRS = 4_096


def reference_texts(task: str, reference: Mapping[str, Any]) -> list[str]:
    """The texts that a right response may read like, by the first of REFERENCE_FIELDS. Raises ConfigError where there are none.

    >>> reference_texts("gsm8k", {"answer": "18", "solution": "9 * 2"}), reference_texts("triviaqa", {"aliases": ["nile"]})
    (['9 * 2'], ['nile'])
    """
    found = next((reference[field] for field in REFERENCE_FIELDS if field in reference), None)
    texts: list[Any] = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"baselines.names: Hybrid LLM compares responses with reference texts, and task {task!r} has none (its references hold "
            f"{sorted(reference)}). Leave hybrid_llm_det, hybrid_llm_prob and hybrid_llm_trans out, or train on other tasks."
        )
    return texts


def read_responses(store: ArtifactStore, key: str, rows: pa.Table, max_references: int, num_responses: int) -> LocalRows:
    """The model's samples of these queries, with the texts that they are compared with: RESPONSES, in the order of `rows`.

    Of each query the first `num_responses` samples.
    """
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
        for batch, with_reference in zip(of_samples, of_queries, strict=True):
            tasks = rows["task"][first : first + batch.num_rows].to_pylist()
            texts = [
                reference_texts(task, json.loads(reference))[:max_references]
                for task, reference in zip(tasks, with_reference["reference"].to_pylist(), strict=True)
            ]
            first_ones = pc.list_slice(batch["texts"], 0, num_responses)
            references = pa.array(texts, RESPONSES.field("references").type)
            yield pa.record_batch([batch["query_id"], first_ones, batch["greedy_text"], references], RESPONSES)
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
