"""What every engine is asked for, and how its answer becomes a row of `samples/`.

Runs on the sampling actors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.util.metrics import Counter

from firewall_ray.schemas import SAMPLES

INPUT_COLUMNS = ["query_id", "task", "prompt"]


@dataclass(frozen=True)
class SamplingSpec:
    """The generation settings of one job, resolved per task. `stop` and `max_tokens` are keyed by task name."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int
    stop: Mapping[str, tuple[str, ...]]
    max_tokens: Mapping[str, int]


@dataclass(frozen=True)
class Completion:
    """One generated text. `num_tokens` counts EOS; None where a remote server does not say."""

    text: str
    num_tokens: int | None
    finish_reason: str | None


def sample_row(
    query: Mapping[str, Any],
    model: str,
    samples: list[Completion],
    greedy: Completion,
    greedy_margin: float | None,
    num_prompt_tokens: int | None,
) -> dict[str, Any]:
    """A row of `samples/` for one query whose generations all succeeded."""
    return {
        "query_id": query["query_id"],
        "task": query["task"],
        "model": model,
        "texts": [sample.text for sample in samples],
        "num_generated_tokens": [sample.num_tokens for sample in samples],
        "finish_reasons": [sample.finish_reason for sample in samples],
        "greedy_text": greedy.text,
        "greedy_margin": greedy_margin,
        "num_prompt_tokens": num_prompt_tokens,
        "error": None,
    }


def error_row(query: Mapping[str, Any], model: str, error: BaseException) -> dict[str, Any]:
    """A failed query stays as a row with `error` set: dropping it would shrink n and flatter the pass rate."""
    message = f"{type(error).__name__}: {error}"
    return {
        **dict.fromkeys(SAMPLES.names),
        "query_id": query["query_id"],
        "task": query["task"],
        "model": model,
        "error": message[:2_000],
    }


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SAMPLES)


class RowCounts:
    """What an actor has sampled, for the driver's progress (`progress` is its counter, or None) and for Ray's dashboard."""

    def __init__(self, model: str, progress: Any) -> None:
        tags = {"model": model}
        self._model = model
        self._progress = progress
        self._metrics = {
            "rows": Counter("firewall_sampling_rows", "Queries sampled.", tag_keys=("model",)),
            "tokens": Counter("firewall_sampling_tokens", "Tokens generated, the n samples only.", tag_keys=("model",)),
            "errors": Counter("firewall_sampling_errors", "Queries that failed and became rows with `error`.", tag_keys=("model",)),
        }
        for metric in self._metrics.values():
            metric.set_default_tags(tags)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        amounts = {
            "rows": len(rows),
            "tokens": sum(count or 0 for row in rows for count in row["num_generated_tokens"] or ()),
            "errors": sum(row["error"] is not None for row in rows),
        }
        for name, amount in amounts.items():
            if amount:
                self._metrics[name].inc(amount)
        if self._progress is not None:
            self._progress.add.remote(self._model, amounts)
