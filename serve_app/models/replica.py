"""A model's deployment: `ray.serve.llm`'s server, spoken to in bytes. Runs on model replicas.

Ray's own ingress parses a body, pickles the request, unpickles the response and dumps it again, through a streaming call even
for an answer that does not stream. Here a body crosses as it came and an answer as it leaves, in one plain call where it does
not stream. docs/serving.md says what that gained.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorInfo,
    ErrorResponse,
)
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.serve.llm import LLMConfig

from firewall_ray.engines.orphans import core_ends_with_actor
from serve_app.errors import error_body, first_problem
from serve_app.models.answers import Endpoint, StreamPart, WholeAnswer, usage_of
from serve_app.models.chats import ChatDefaults
from serve_app.models.gpu_time import GpuTime

REQUEST_TYPES: dict[Endpoint, type[BaseModel]] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}


class WrongTypes(Exception):
    """A body that vLLM's own checks trip over."""


CLIENT_ERRORS = (ValidationError, WrongTypes, *VLLM_CLIENT_ERRORS)

# How an event shows that it holds the usage and no text. In a JSON string, as text is, the quotes would be escaped.
NO_CHOICES = '"choices":[]'
ERROR = 'data: {"error"'


class ModelServer(LLMServer):
    """One replica of a model. Its request types, engine and everything else are Ray's. chats: what its clients' chats get."""

    async def __init__(self, llm_config: LLMConfig, *, chats: ChatDefaults) -> None:  # type: ignore[misc]  # Serve awaits it
        self._chats = chats
        sizes = (llm_config.engine_kwargs.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
        self._gpu_time = GpuTime(math.prod(sizes))
        await super().__init__(llm_config)

    async def start(self) -> None:
        core_ends_with_actor()  # vLLM's core is a child of this process, and would hold its GPUs after the replica was killed
        await super().start()

    async def answer(self, endpoint: Endpoint, body: bytes) -> WholeAnswer:
        """The whole answer to a request that does not stream; a 4xx to a body that the model does not take."""
        began = time.perf_counter()
        with self._gpu_time.answering() as gpu_s:
            try:
                responses = await self._ask(endpoint, from_json(body))
                response = await anext(responses)
            except CLIENT_ERRORS as e:
                return _refusal_of(e, began)
            if isinstance(response, ErrorResponse):
                return _refusal(response.error.code, response.error.message, began=began)
            usage = usage_of(response.usage.model_dump(), gpu_s())
        return WholeAnswer(200, to_json(response), usage, _since(began))

    async def stream(self, endpoint: Endpoint, body: bytes) -> AsyncIterator[WholeAnswer | StreamPart]:
        """Server-sent events, one part with the usage among them; or one WholeAnswer, a 4xx."""
        with self._gpu_time.answering() as gpu_s:
            async for part in self._parts(endpoint, body, gpu_s):
                yield part

    async def _parts(self, endpoint: Endpoint, body: bytes, gpu_s: Callable[[], float]) -> AsyncIterator[WholeAnswer | StreamPart]:
        began = time.perf_counter()
        parsed = from_json(body)
        options = parsed.get("stream_options")
        usage_is_wanted = bool(isinstance(options, dict) and options.get("include_usage"))
        if options is None or isinstance(options, dict):  # anything else is the client's error, for the model to name
            parsed["stream_options"] = {**(options or {}), "include_usage": True}
        try:
            events = await self._ask(endpoint, parsed)
            first = await anext(events)
        except CLIENT_ERRORS as e:
            yield _refusal_of(e, began)
            return
        error = _error_of(first)
        if error is not None:
            yield _refusal(error.code, error.message, began=began)
            return

        yield StreamPart(first.encode(), model_s=_since(began))
        # The first token leaves at once; of the others, those of some milliseconds leave together.
        async for batch in self._batch_output_stream(events):
            usage = None
            for event in batch:
                if event.startswith(ERROR):  # in the engine's words, which are for its log
                    raise RuntimeError("the engine failed in the middle of its answer")
                if NO_CHOICES in event:
                    usage = usage_of(from_json(event.removeprefix("data: "))["usage"], gpu_s())
            chunk = "".join(event for event in batch if usage_is_wanted or NO_CHOICES not in event)
            yield StreamPart(chunk.encode(), usage=usage)

    async def _ask(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[Any]:
        """The engine's responses: one, or a stream's events as text."""
        body["model"] = self._llm_config.model_id  # the client named the router
        if endpoint == "chat":
            body = self._chats.filled(body)
        return await self._run_request(request_of(endpoint, body), engine_method=endpoint)


def request_of(endpoint: Endpoint, body: dict[str, Any]) -> BaseModel:
    """The body as vLLM takes it. Raises one of CLIENT_ERRORS."""
    try:
        return REQUEST_TYPES[endpoint].model_validate(body)
    except CLIENT_ERRORS:
        raise
    except Exception as e:  # of a check that runs before those of types, and takes them for right
        raise WrongTypes("A field of the body has a wrong type.") from e


def _since(began: float) -> float:
    return time.perf_counter() - began


def _refusal_of(error: Exception, began: float) -> WholeAnswer:
    """Of one of CLIENT_ERRORS."""
    if isinstance(error, ValidationError):
        return _refusal(400, *first_problem(error), began=began)
    return _refusal(400, str(error), began=began)


def _refusal(status: int, message: str, code: str | None = None, param: str | None = None, *, began: float) -> WholeAnswer:
    """In vLLM's words, less the client's input that pydantic repeats in some of them."""
    words = message.partition(" [type=")[0]
    return WholeAnswer(status, error_body(status, words, code=code, param=param), None, _since(began))


def _error_of(first: ErrorResponse | str) -> ErrorInfo | None:
    """What the engine says when it refuses a stream: before it begins, or as its first event once it has looked closer."""
    if isinstance(first, ErrorResponse):
        return first.error
    return ErrorInfo.model_validate(from_json(first.removeprefix("data: "))["error"]) if first.startswith(ERROR) else None
