"""What Hybrid LLM reads of the samples, against reading whole tables, and what of it is in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from handmade import query, sample, write

from firewall_ray.baselines.hybrid_llm_responses import PAIRS, RESPONSES, read_responses, training_pairs
from firewall_ray.errors import ArtifactError
from firewall_ray.store.layout import ArtifactStore

RNG = np.random.default_rng(0)


def labelled(ids: list[str]) -> pa.Table:
    splits = np.where(np.arange(len(ids)) % 3 == 0, "validation", "train")
    return pa.table({"query_id": ids, "task": ["tiny_world"] * len(ids), "split": splits})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """700 queries, the rows of each dataset in an order of its own; models that repeat themselves and each other."""
    store = ArtifactStore(str(tmp_path))
    ids = [f"q{number}" for number in range(700)]
    rows = [query(i, reference=json.dumps({"answer": f"answer {i}"})) for i in ids]
    write(store.queries(), [rows[row] for row in RNG.permutation(700)])
    for key in ("weak", "strong"):
        samples = [sample(i, [f"text {n}" for n in RNG.integers(0, 6, 4)], f"greedy {key} {i}") for i in ids]
        for part, order in enumerate(np.array_split(RNG.permutation(700), 3)):
            write(store.samples(key), [samples[row] for row in order], f"{part}.parquet")
    return store


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets of ids, many blocks of texts and many batches."""
    monkeypatch.setattr("firewall_ray.store.joins.BUCKET_ROWS", 100)
    monkeypatch.setattr("firewall_ray.baselines.hybrid_llm_responses.BLOCK_TEXTS", 500)
    monkeypatch.setattr("firewall_ray.baselines.hybrid_llm_responses.BATCH_ROWS", 30)
    monkeypatch.setattr("firewall_ray.baselines.hybrid_llm_responses.BATCH_PAIRS", 70)


def whole(store: ArtifactStore, key: str, rows: pa.Table) -> list[dict[str, Any]]:
    """As one join in memory gives it."""
    table = store.samples(key).read(["query_id", "texts", "greedy_text"])
    found = table.take(pc.index_in(rows["query_id"], table["query_id"].combine_chunks())).to_pylist()
    return [{**row, "references": [f"answer {row['query_id']}"]} for row in found]


@pytest.mark.usefixtures("small_blocks")
def test_responses_joined_on_disk_are_those_of_a_join_in_memory(store: ArtifactStore) -> None:
    rows = labelled([f"q{number}" for number in RNG.permutation(700)[:600]])
    found = read_responses(store, "weak", rows, max_references=8, num_responses=4)
    assert found.schema == RESPONSES
    assert len(found) == 600
    assert max(batch.num_rows for batch in found.batches()) <= 30
    assert found.read().to_pylist() == whole(store, "weak", rows)


def test_only_the_first_responses_of_each_query_are_compared(store: ArtifactStore) -> None:
    rows = labelled(["q5", "q3"])
    found = read_responses(store, "strong", rows, max_references=8, num_responses=2).read().to_pylist()
    wanted = whole(store, "strong", rows)
    assert [row["texts"] for row in found] == [row["texts"][:2] for row in wanted]
    assert [row["greedy_text"] for row in found] == [row["greedy_text"] for row in wanted]


@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_each_distinct_response_once_in_the_labels_order(store: ArtifactStore) -> None:
    rows = labelled([f"q{number}" for number in RNG.permutation(700)])
    is_train = pc.equal(rows["split"], "train").to_numpy()
    pairs = training_pairs(*(read_responses(store, key, rows, 8, 16) for key in ("weak", "strong")), is_train)
    wanted: dict[tuple[str, str, str], None] = {}
    for key in ("weak", "strong"):
        for row, counts in zip(whole(store, key, rows), is_train, strict=True):
            wanted |= dict.fromkeys((row["query_id"], text, row["references"][0]) for text in row["texts"] if counts)
    assert pairs.schema == PAIRS
    assert [tuple(pair.values()) for pair in pairs.read().to_pylist()] == [(text, reference) for _, text, reference in wanted]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["samples", "queries"])
def test_the_first_labelled_query_without_samples_or_reference_is_named(store: ArtifactStore, kind: str) -> None:
    lost = ["q7", "q300", "q301"]
    dataset = store.samples("weak") if kind == "samples" else store.queries()
    for file in dataset.files():
        table = pq.read_table(file)
        pq.write_table(table.filter(pc.invert(pc.is_in(table["query_id"], pa.array(lost)))), file)
    with pytest.raises(ArtifactError, match=rf"{kind}: .* lacks query 'q7', which has a label \(3 such\)\. Hybrid LLM needs"):
        read_responses(store, "weak", labelled([f"q{number}" for number in range(700)]), 8, 10)


def test_the_texts_of_the_samples_are_never_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BLOCK_TEXTS": 2_048, "BATCH_ROWS": 64, "BATCH_PAIRS": 512}.items():
        monkeypatch.setattr(f"firewall_ray.baselines.hybrid_llm_responses.{name}", value)
    store, num_rows, num_texts = ArtifactStore(str(tmp_path)), 3_000, 16
    ids = [f"q{number}" for number in range(num_rows)]
    write(store.queries(), [query(i) for i in ids])
    for key in ("weak", "strong"):
        texts = pa.array([f"{key} {number:0800}" for number in range(num_rows * num_texts)])
        table = pa.table(
            {
                "query_id": ids,
                "texts": pa.ListArray.from_arrays(np.arange(0, len(texts) + 1, num_texts, dtype=np.int32), texts),
                "greedy_text": ["no"] * num_rows,
            }
        ).take(RNG.permutation(num_rows))
        Path(store.samples(key).path).mkdir(parents=True)
        pq.write_table(table, f"{store.samples(key).path}/theirs.parquet", row_group_size=100, use_dictionary=False)
    size = texts.nbytes
    del texts, table
    rows = labelled(ids)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        responses = {key: read_responses(store, key, rows, 8, 16) for key in ("weak", "strong")}
        pairs = training_pairs(responses["weak"], responses["strong"], pc.equal(rows["split"], "train").to_numpy())
        _, of_python = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert len(pairs) == 2 * 2_000 * num_texts
    # A block of 2 MB and some batches of 1 MB each; both models' texts are 78 MB, and as Python's strings as much again.
    assert size > 38e6
    assert pool.max_memory() + of_python < 15e6
