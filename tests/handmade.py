"""Small datasets made by hand, as another program would write them: Parquet files and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firewall_ray.config.run import RunConfig
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

Rows = Sequence[Mapping[str, Any]]


def make_config(root: str, **sections: Any) -> RunConfig:
    """A config with the tiny task and three models whose paths do not exist."""
    tasks = {"tiny_world": {"num_train": 40, "num_validation": 10, "num_test": 20}}
    models = {key: {"path": "-"} for key in ("weak", "middle", "strong")}
    return RunConfig.model_validate({"root": root, "queries": {"tasks": tasks}, "models": models, **sections})


def query(query_id: str, **fields: Any) -> dict[str, Any]:
    prompt = f"Question: {query_id}?\nAnswer: "
    row = {"query_id": query_id, "task": "tiny_world", "split": "train", "question": f"{query_id}?", "prompt": prompt}
    return {**row, "reference": '{"answer": "yes"}', **fields}


def grade(
    query_id: str, correct: Any, greedy_correct: bool | None = True, error: str | None = None, **fields: Any
) -> dict[str, Any]:
    """`correct` as a text of 0 and 1, one digit a sample."""
    verdicts = [digit == "1" for digit in correct] if isinstance(correct, str) else correct
    row = {"query_id": query_id, "task": "tiny_world", "model": "any"}
    return {**row, "correct": verdicts, "greedy_correct": greedy_correct, "error": error, **fields}


def sample(query_id: str, texts: Any, greedy_text: str | None = "yes", error: str | None = None, **fields: Any) -> dict[str, Any]:
    n = len(texts or ())
    row = {"query_id": query_id, "task": "tiny_world", "model": "any", "texts": texts, "greedy_text": greedy_text}
    lists = {"num_generated_tokens": [2] * n, "finish_reasons": ["stop"] * n}
    return {**row, **lists, "greedy_margin": 0.5, "num_prompt_tokens": 4, "error": error, **fields}


def write(dataset: Dataset, rows: Rows, name: str = "theirs.parquet", schema: pa.Schema | None = None) -> None:
    dataset.filesystem.create_dir(dataset.path, recursive=True)
    table = pa.Table.from_pylist(list(rows), schema=schema or dataset.schema)
    pq.write_table(table, f"{dataset.path}/{name}", filesystem=dataset.filesystem)


def write_pair(store: ArtifactStore, queries: Rows, weak: Rows, strong: Rows) -> None:
    write(store.queries(), queries)
    write(store.grades("weak"), weak)
    write(store.grades("strong"), strong)
