"""Which queries are sampled again with more room. tests/pipeline has a real engine do it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from firewall_ray.schemas import GRADES, SAMPLES
from firewall_ray.stages.extend_truncated import _cut_off
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

BOUND = 100


def cut_off(
    tmp_path: Path, rows: list[tuple[list[str] | None, list[int | None] | None, str | None, list[str] | None]], **settings: Any
) -> list[str]:
    """rows: finish reasons and tokens of the samples, the greedy answer's finish reason, the verdicts."""
    store = ArtifactStore(str(tmp_path))
    samples, grades = [], []
    for number, (reasons, tokens, greedy, verdicts) in enumerate(rows):
        row = {"query_id": f"q{number}", "task": "t", "model": "m"}
        samples.append({**row, "finish_reasons": reasons, "num_generated_tokens": tokens, "greedy_finish_reason": greedy})
        grades.append({**row, "verdicts": verdicts, "greedy_verdict": "truncated" if greedy == "length" else "wrong"})
    written(store.samples("m"), pa.Table.from_pylist(samples, schema=SAMPLES), settings)
    written(store.grades("m"), pa.Table.from_pylist(grades, schema=GRADES), {})
    return _cut_off(store.samples("m"), store.grades("m"), BOUND).to_pylist()


def written(dataset: Dataset, rows: pa.Table, settings: dict[str, Any]) -> None:
    dataset.begin(settings)
    dataset.append(rows, "part.parquet")
    dataset.finish({}, {})


def test_only_what_was_cut_off_and_is_not_right_gets_more_room(tmp_path: Path) -> None:
    stop, cut = ["stop", "stop"], ["stop", "length"]
    assert cut_off(
        tmp_path,
        [
            (stop, [5, 6], "stop", ["wrong", "wrong"]),
            (cut, [5, 50], "stop", ["wrong", "truncated"]),  # q1
            (cut, [5, 50], "stop", ["wrong", "right"]),  # right before it was cut
            (cut, [5, BOUND], "stop", ["wrong", "truncated"]),  # had all the room there is
            (stop, [5, 6], "length", ["wrong", "wrong"]),  # q4: the greedy answer alone
            (None, None, None, None),  # a row with an error
        ],
    ) == ["q1", "q4"]


@pytest.mark.parametrize(("settings", "expected"), [({}, ["q0"]), ({"extended": 50}, ["q0"]), ({"extended": BOUND}, [])])
def test_rows_of_a_server_that_does_not_count_are_extended_once(
    tmp_path: Path, settings: dict[str, Any], expected: list[str]
) -> None:
    rows = [(["length", "stop"], [None, None], "stop", ["truncated", "wrong"])]
    assert cut_off(tmp_path, rows, **settings) == expected
