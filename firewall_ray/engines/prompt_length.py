"""Prompts that do not fit a model's context are found before an engine starts, not after an hour of sampling.

Runs in the driver. A prompt has no more tokens than UTF-8 bytes (every tokenizer that vLLM serves falls back to bytes), so
only prompts long enough to matter are tokenized.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ModelError, TaskError
from firewall_ray.store.joins import LocalRows

SPECIAL_TOKENS = 8  # room for what a tokenizer adds around a prompt


def check_prompt_lengths(key: str, model: VllmModelConfig, queries: LocalRows, prompt: PromptFormat) -> None:
    """Raises ModelError when the model cannot be found, TaskError naming the first query whose prompt leaves no room."""
    context = context_length(key, model)
    tokenizer = load_tokenizer(key, model) if prompt.is_chat else None
    # What a template writes around every question, a system prompt included.
    around = len(prompt.token_ids(tokenizer, {"question": "", "prompt": ""})) if tokenizer is not None else SPECIAL_TOKENS
    for query in _suspects(queries, context - around):
        if tokenizer is None:
            tokenizer = load_tokenizer(key, model)
        num_tokens = len(prompt.token_ids(tokenizer, query))
        # A prompt of exactly the context leaves no room for the first token of an answer.
        if num_tokens >= context:
            raise TaskError(
                f"queries: the prompt of {query['query_id']} (task {query['task']}) has {num_tokens:,} tokens, and models.{key} "
                f"has a context of {context:,}, prompt and completion together. Drop the query, raise models.{key}.max_model_len "
                "(up to what the model was trained for), or choose another model."
            )


def _suspects(queries: LocalRows, room: int) -> Iterator[dict[str, Any]]:
    for batch in queries.batches(["query_id", "task", "prompt", "question"]):
        # int32, (num_rows,). A question is part of its prompt.
        num_bytes = pc.binary_length(batch["prompt"])
        yield from batch.filter(pc.greater(num_bytes, room)).to_pylist()


def context_length(key: str, model: VllmModelConfig) -> int:
    """Tokens of prompt and completion together. Raises ModelError when the model's folder or hub id cannot be read."""
    try:
        config = Checkpoint.of(model).config()
    except (OSError, ValueError) as e:
        raise ModelError(
            f"models.{key}.path: no model at {model.path!r}. Give a Hugging Face folder (with config.json) that every node "
            f"sees, or a hub id that this machine can reach{_fields(key, model)}. transformers says: {str(e).splitlines()[0]}"
        ) from e
    # A multimodal model's limit is that of its text part. Where nobody names one, every prompt fits.
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    return model.engine_kwargs.get("max_model_len") or model.max_model_len or trained or 2**31


def load_tokenizer(key: str, model: VllmModelConfig) -> Any:
    """The one that vLLM will use. Raises ModelError where it cannot be loaded."""
    checkpoint = Checkpoint.of(model)
    try:
        return checkpoint.tokenizer()
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, JSON and Rust errors here
        raise ModelError(
            f"models.{key}: no tokenizer can be loaded from {checkpoint.tokenizer_path!r}{_fields(key, model)}. "
            f"transformers says: {type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
        ) from e


def _fields(key: str, model: VllmModelConfig) -> str:
    """What the config says of the files beside their path, for a message."""
    named = ("revision", "code_revision", "tokenizer", "tokenizer_revision", "trust_remote_code")
    said = [f"{name}: {model.engine_kwargs[name]}" for name in named if name in model.engine_kwargs]
    return f" (models.{key}.engine_kwargs has {', '.join(said)})" if said else ""
