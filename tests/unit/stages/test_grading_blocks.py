"""How grading is cut into blocks, and how often it and labelling open a file."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from handmade import grade, make_config, query, sample, write, write_pair
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from firewall_ray.schemas import SAMPLES
from firewall_ray.stages.grading_blocks import BLOCKS_PER_CPU, MAX_BLOCK_S, cut_by_cost, look_over, plan_blocks, read_block
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import read_queries
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import TASKS

IDS = pa.schema([SAMPLES.field("query_id")])


class Counting(LocalFileSystem):
    """Counts opens of each file for reading."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.opens: Counter[str] = Counter()

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "r" in mode and path.endswith(".parquet"):
            self.opens[Path(path).parent.name] += 1
        return super().open(path, mode, **kwargs)


def counting_store(folder: Path) -> tuple[ArtifactStore, Counter[str]]:
    """A store that counts, by folder."""
    counting, store = Counting(), ArtifactStore(str(folder))
    store.filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(counting))
    return store, counting.opens


# Cutting -------------------------------------------------------------------------------------------------------------

COSTS = st.lists(st.lists(st.floats(0, 5, width=32), max_size=30), min_size=1, max_size=12)


@given(COSTS, st.floats(0.5, 50))
def test_blocks_hold_every_row_once_cost_about_the_same_and_are_not_many(groups: list[list[float]], max_s: float) -> None:
    costs = np.float32(list(itertools.chain(*groups)))
    bounds = np.cumsum([0, *map(len, groups)])
    cuts = cut_by_cost(costs, bounds, max_s)
    assert (cuts[0], cuts[-1]) == (0, len(costs))
    assert np.all(np.diff(cuts) > 0)
    dearest = costs.max(initial=0)
    assert all(costs[a:b].sum(dtype=np.float64) <= max_s + dearest + 1e-3 for a, b in itertools.pairwise(cuts))
    # Two blocks that follow one another cost more than max_s together, or lie about a row group that does; each is in two pairs.
    assert len(cuts) - 1 <= 2 + 4 * costs.sum() / max_s


def test_all_of_human_eval_is_shared_by_two_cpus_and_a_million_cheap_rows_are_some_dozens_of_blocks() -> None:
    programs = np.full(164, 33 * 0.025, dtype=np.float32)  # 135 s
    cuts = cut_by_cost(programs, np.array([0, 164]), 135.3 / (2 * BLOCKS_PER_CPU))
    assert len(cuts) - 1 == 16
    assert set(np.diff(cuts)) == {10, 11}  # 164 / 16 = 10.25
    cheap = np.full(1_000_000, 33 * 5e-5, dtype=np.float32)  # 1,650 s
    groups = np.append(np.arange(0, 1_000_000, 8_192), 1_000_000)
    assert len(cut_by_cost(cheap, groups, MAX_BLOCK_S)) - 1 == 61  # 122 row groups of 13.5 s, two a block, and 576 rows


# From files to blocks and back ---------------------------------------------------------------------------------------


def samples_in_files(store: ArtifactStore) -> Dataset:
    """Three files of 40 rows in row groups of 7; every fifth row is a program."""
    samples = store.samples("weak")
    samples.filesystem.create_dir(samples.path, recursive=True)
    for part in range(3):
        rows = [
            sample(f"{part}-{i:02}", ["x"] * 3, "x", task="humaneval" if i % 5 == 0 else "gsm8k", error=None) for i in range(40)
        ]
        table = pa.Table.from_pylist(rows, schema=SAMPLES)
        pq.write_table(table, f"{samples.path}/{part}.parquet", filesystem=samples.filesystem, row_group_size=7)
    return samples


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
def test_the_rows_of_all_blocks_are_the_rows_that_are_to_be_graded(tmp_path: Path, share: float) -> None:
    samples = samples_in_files(ArtifactStore(str(tmp_path)))
    ids = samples.read(["query_id"])["query_id"].to_pylist()
    costs = np.where(np.random.default_rng(0).random(120) < share, np.float32(0.2), np.float32(0))
    blocks = plan_blocks(samples, costs, num_cpus=4)
    read = [table["query_id"].to_pylist() for block in blocks for table in read_block(samples, IDS, block, batch_rows=3)]
    assert all(read)
    assert sorted(itertools.chain(*read)) == sorted(query_id for query_id, cost in zip(ids, costs, strict=True) if cost)


def test_grading_opens_each_file_of_samples_twice_before_it_starts(tmp_path: Path) -> None:
    """Its footer, then ids and tasks; it was four times. What a row costs is known from these."""
    store, opens = counting_store(tmp_path)
    samples_in_files(store)
    write(store.queries(), [query(f"{part}-{i:02}") for part in range(3) for i in range(40)] + [query("without")])
    queries = read_queries(store)
    samples = store.samples("weak").require(["query_id", "task", "texts", "greedy_text", "error"])
    samples.identity()
    rows = look_over(samples, queries, TASKS, only_known=False)
    blocks = plan_blocks(samples, rows.costs, num_cpus=2)
    assert opens["weak"] == 2 * 3
    assert (len(rows.ids), rows.num_without) == (120, 1)
    # 24 programs' rows of 3 + 1 texts, 25 ms each, and 96 rows that cost next to nothing
    assert rows.costs.sum() == pytest.approx(24 * 4 * 0.025, rel=0.05)
    assert len(blocks) >= 4


def test_labelling_opens_each_file_twice(tmp_path: Path) -> None:
    store, opens = counting_store(tmp_path)
    write_pair(store, [query("a")], [grade("a", "10")], [grade("a", "11")])
    write(store.grades("weak"), [grade("b", "10")], "more.parquet")
    opens.clear()
    run_labeling(make_config(str(tmp_path)), store)
    assert opens == {"queries": 2, "weak": 4, "strong": 2}
