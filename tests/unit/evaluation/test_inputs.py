"""The report's inputs against reading whole tables, and what of them is in memory."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from firewall_ray.errors import ArtifactError
from firewall_ray.evaluation.inputs import read_labels, read_scores
from firewall_ray.schemas import LABELS, SCORES
from firewall_ray.store.layout import ArtifactStore


def labels_table(num_rows: int, share_of_test: float, prompt_length: int = 20) -> pa.Table:
    rng = np.random.default_rng(0)
    splits = rng.choice(["train", "validation", "test"], num_rows, p=[0.9 - share_of_test, 0.1, share_of_test])
    columns: dict[str, Any] = {
        "query_id": [f"q{number:08}é" for number in rng.permutation(num_rows)],
        "task": rng.choice(["sums", "facts"], num_rows),
        "split": splits,
        "prompt": [f"{row:0{prompt_length}}" for row in range(num_rows)],
        "greedy_weak": np.zeros(num_rows, dtype=bool),
        "greedy_strong": np.zeros(num_rows, dtype=bool),
        "pass_rate_weak": rng.integers(0, 9, num_rows) / 8,
        "pass_rate_strong": rng.integers(0, 9, num_rows) / 8,
    }
    rest = rng.integers(0, 2, num_rows)
    return pa.table({field.name: pa.array(columns.get(field.name, rest)).cast(field.type) for field in LABELS}, LABELS)


def write(folder: Path, table: pa.Table, num_files: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(num_files):
        first, end = (len(table) * edge // num_files for edge in (number, number + 1))
        pq.write_table(table[first:end], folder / f"{number}.parquet", row_group_size=10_000)


def scores_of(labels: pa.Table) -> pa.Table:
    p_weak = np.random.default_rng(1).integers(0, 5, len(labels)) / 4
    return pa.table([labels["query_id"], p_weak.astype(np.float32)], SCORES)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall_ray.store.joins.BUCKET_ROWS", 100)


@pytest.mark.parametrize("limit", [None, 57])
def test_what_is_streamed_equals_what_whole_tables_say(tmp_path: Path, small_buckets: None, limit: int | None) -> None:
    labels = labels_table(2_000, share_of_test=0.3)
    scores = scores_of(labels).take(np.random.default_rng(2).permutation(2_000))
    write(tmp_path / "labels", labels)
    write(tmp_path / "scores" / "any", scores)
    store = ArtifactStore(str(tmp_path))
    queries, validation_ids = read_labels(store, ["soft_block"], limit)
    test = labels.filter(pc.equal(labels["split"], "test"))[:limit].sort_by("query_id")
    assert queries.query_ids == test["query_id"].to_pylist()
    assert queries.prompts == test["prompt"].to_pylist()
    assert queries.tasks.tolist() == test["task"].to_pylist()
    assert queries.pass_rate_weak.tolist() == test["pass_rate_weak"].to_pylist()
    assert queries.pass_rate_strong.tolist() == test["pass_rate_strong"].to_pylist()
    assert queries.labels["soft_block"].tolist() == test["soft_block"].to_pylist()
    assert validation_ids == labels.filter(pc.equal(labels["split"], "validation"))["query_id"].to_pylist()

    router = read_scores(store, "any", queries, validation_ids)
    score_of = dict(zip(*(scores[name].to_pylist() for name in SCORES.names), strict=True))
    assert router.p_weak.tolist() == [score_of[query_id] for query_id in queries.query_ids]
    assert router.calibration.tolist() == [score_of[query_id] for query_id in validation_ids]


def test_an_id_that_comes_twice_is_found_in_whichever_bucket_it_lies(tmp_path: Path, small_buckets: None) -> None:
    labels = labels_table(1_000, share_of_test=0.3)
    write(tmp_path / "labels", labels)
    write(tmp_path / "scores" / "any", pa.concat_tables([scores_of(labels), scores_of(labels)[700:701]]))
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(ArtifactError, match=f"'any'.*{labels['query_id'][700]}.* comes more than once .1 such"):
        read_scores(store, "any", *read_labels(store, []))
    write(tmp_path / "twice" / "labels", pa.concat_tables([labels, labels[700:701]]))
    with pytest.raises(ArtifactError, match=f"labels: .*{labels['query_id'][700]}.* comes more than once"):
        read_labels(ArtifactStore(str(tmp_path / "twice")), [])


def test_a_router_without_any_score_is_refused(tmp_path: Path) -> None:
    labels = labels_table(100, share_of_test=0.3)
    write(tmp_path / "labels", labels)
    write(tmp_path / "scores" / "any", scores_of(labels)[:0], num_files=1)
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(ArtifactError, match="scores none of the"):
        read_scores(store, "any", *read_labels(store, []))


def test_only_the_test_splits_prompts_are_in_memory(tmp_path: Path) -> None:
    num_rows, prompt_length = 60_000, 1_000
    labels = labels_table(num_rows, 0.02, prompt_length)
    write(tmp_path / "labels", labels)
    write(tmp_path / "scores" / "any", scores_of(labels))
    store = ArtifactStore(str(tmp_path))
    assert (size := labels["prompt"].nbytes) > 60e6
    del labels
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        queries, validation_ids = read_labels(store, ["soft_block"])
        read_scores(store, "any", queries, validation_ids)
        _, of_python = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    # A row group and a batch of prompts, of 10 MB each, and a bucket of ids: all of the prompts would be 60 MB, twice.
    assert pool.max_memory() + of_python < 0.75 * size
    assert len(queries) < 0.03 * num_rows
