"""What a model deployment hands back, and what a client of it makes of that.

`WholeAnswer`, `StreamPart` and `Usage` cross from a model replica to the ingress; `Answer` is what the ingress sends on.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["chat", "completions"]  # and so are vLLM's methods called in ray.serve.llm

OPERATIONS: dict[Endpoint, str] = {"chat": "chat", "completions": "text_completion"}  # as OpenTelemetry names them

# Why a model gave no answer: no replica, or it died; its queue is full; its time ran out; an error of its own; its engine
# crashed while it worked on this request, which may be why.
Unavailable = Literal["dead", "overloaded", "timeout", "failed", "crashed"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer, as the model's server counted them. cached_tokens: of the prompt's, found in its cache. gpu_s: seconds
    of one of its GPUs, of those that it shares with other answers its part; 0 where that is not known. reasoning_tokens: of the
    completion's, where the server tells them apart.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    gpu_s: float = 0.0
    reasoning_tokens: int = 0


def usage_of(counted: Mapping[str, Any], gpu_s: float = 0.0) -> Usage:
    """Of what OpenAI-compatible servers call `usage`, some of which leave things out."""
    details = counted.get("prompt_tokens_details") or {}
    thought = (counted.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    prompt_tokens, completion_tokens = counted.get("prompt_tokens") or 0, counted.get("completion_tokens") or 0
    return Usage(prompt_tokens, completion_tokens, details.get("cached_tokens") or 0, gpu_s, thought)


def usage_attributes(usage: Usage | None) -> dict[str, Any]:
    """Of a span, in OpenTelemetry's names."""
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
    }


@dataclass(frozen=True)
class WholeAnswer:
    """status: HTTP. body: JSON. model_s: seconds that the model's replica took; the rest was the way and the queue."""

    status: int
    body: bytes
    usage: Usage | None
    model_s: float


@dataclass(frozen=True)
class StreamPart:
    """What of a stream crosses together, since crossing costs more than the bytes. chunk: whole events, perhaps none. model_s:
    of the first part, which is sent once the model has its first token. usage: of a part near the end.
    """

    chunk: bytes
    model_s: float | None = None
    usage: Usage | None = None


@dataclass
class Answer:
    """status: HTTP. body: all of it, or the chunks of an event stream. usage: None until known, for a stream its end.

    release: frees what a stream holds at its model. To be called once, whatever became of the stream, read or not: the
    `finally` of a generator that nobody began to read never runs.
    """

    status: int
    body: bytes | AsyncIterator[bytes]
    usage: Usage | None = None
    model_s: float | None = None
    release: Callable[[], Awaitable[None]] | None = None

    @property
    def media_type(self) -> str:
        return "application/json" if isinstance(self.body, bytes) else "text/event-stream"


class NotReady(Exception):
    """A model that is up and would not answer as it should. Its words are for everybody: no prompts, no paths."""


class ModelUnavailable(Exception):
    """A model gave no answer, and not a byte of one: another may still. retry_after_s: when it will probably be there again."""

    def __init__(self, why: Unavailable, retry_after_s: float = 1.0) -> None:
        super().__init__(why)
        self.why: Unavailable = why
        self.retry_after_s = retry_after_s


# What a model's replica raises, and an ingress unpickles.


class EngineDead(Exception):
    """The replica has no engine that answers: it was dead before this request came, somebody killed it, or it hangs."""


class EngineCrashed(Exception):
    """The engine died by itself while it worked on this request. Another engine may die of it too."""
