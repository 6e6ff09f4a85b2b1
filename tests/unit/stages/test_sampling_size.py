"""What sampling is said to take, before it starts."""

from pathlib import Path

import pyarrow as pa
import pytest

from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.schemas import SAMPLES
from firewall_ray.stages.sampling_size import size_words
from firewall_ray.store.joins import LocalRows
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import parts_of

SPEC = SamplingSpec(4, 1.0, 1.0, 0, {"a": (), "b": ()}, {"a": 10, "b": 100})


def queries(a: int, b: int) -> LocalRows:
    rows = pa.table({"query_id": [f"q{i}" for i in range(a + b)], "task": ["a"] * a + ["b"] * b})
    return LocalRows(rows.to_batches(), rows.schema)


def rows(task: str, *tokens: list[int] | None) -> pa.Table:
    made = [{"query_id": f"q{i}", "task": task, "model": "m", "num_generated_tokens": each} for i, each in enumerate(tokens)]
    return pa.Table.from_pylist(made, schema=SAMPLES)


def test_nothing_is_known_but_the_limits_at_first(tmp_path: Path) -> None:
    samples = ArtifactStore(str(tmp_path)).samples("m")
    # (6 x 10 + 2 x 100) tokens at most, 4 samples and a greedy answer each
    assert size_words(8, queries(6, 2), samples, SPEC, None) == "40 generations, at most 1 k tokens"


def test_rows_that_are_there_say_how_long_answers_are_and_the_last_run_how_fast(tmp_path: Path) -> None:
    samples = ArtifactStore(str(tmp_path)).samples("m")
    samples.begin({})
    # 8 tokens over 4 samples are 2 each, so 10 with the greedy one. The row with an error says nothing.
    samples.append(rows("a", [1, 2, 3, 2], None), "one.parquet")
    assert size_words(8, queries(6, 2), samples, SPEC, 5.0) == "40 generations, at most 1 k tokens"
    parts_of(samples).append(rows("b", [100, 100, 100, 100]), "two.parquet")
    # 6 x 10 + 2 x 500 = 1,060 for all 8; half of them are missing: 530 tokens, at 5 a second 106 s
    words = size_words(4, queries(6, 2), samples, SPEC, 5.0)
    assert words == "20 generations, about 530 tokens by the 2 queries that are done, about 2 minutes at 5 tokens/s"


@pytest.mark.parametrize("counts", [[None, None, None, None]])
def test_a_server_that_does_not_count_leaves_the_limits(tmp_path: Path, counts: list[None]) -> None:
    samples = ArtifactStore(str(tmp_path)).samples("m")
    samples.begin({})
    samples.append(rows("a", counts), "one.parquet")
    assert size_words(1, queries(1, 0), samples, SPEC, 5.0) == "5 generations, at most 50 tokens"
