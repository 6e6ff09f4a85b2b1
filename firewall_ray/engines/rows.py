"""What every engine is asked for, and how its answer becomes a row of `samples/`.

Runs on the sampling actors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.schemas import SAMPLES

INPUT_COLUMNS = ["query_id", "task", "prompt", "question"]


@dataclass(frozen=True)
class SamplingSpec:
    """The generation settings of one job, resolved per task. `stop` and `max_tokens` are keyed by task name."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int
    stop: Mapping[str, tuple[str, ...]]
    max_tokens: Mapping[str, int]
    prompt: PromptFormat = field(default_factory=PromptFormat)


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
        "texts": [without_surrogates(sample.text) for sample in samples],
        "num_generated_tokens": [sample.num_tokens for sample in samples],
        "finish_reasons": [sample.finish_reason and without_surrogates(sample.finish_reason) for sample in samples],
        "greedy_text": without_surrogates(greedy.text),
        "greedy_finish_reason": greedy.finish_reason and without_surrogates(greedy.finish_reason),
        "greedy_margin": greedy_margin,
        "num_prompt_tokens": num_prompt_tokens,
        "error": None,
    }


def error_row(query: Mapping[str, Any], model: str, error: BaseException) -> dict[str, Any]:
    """A failed query stays as a row with `error` set: dropping it would shrink n and flatter the pass rate."""
    message = f"{type(error).__name__}: {error}"
    return {
        # All else is null, as the contract has it for a row with an error.
        **dict.fromkeys(SAMPLES.names),
        "query_id": query["query_id"],
        "task": query["task"],
        "model": model,
        # A server's message may quote the whole prompt.
        "error": without_surrogates(message[:2_000]),
    }


def without_surrogates(text: str) -> str:
    """The text as Arrow can hold it: a pair of surrogates is its character, half a pair (a text cut inside an emoji) U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    # Raises for what the schema cannot hold, such as a count beyond int32.
    return pa.Table.from_pylist(rows, schema=SAMPLES)
