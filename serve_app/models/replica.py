"""A model's deployment: `ray.serve.llm`'s server, spoken to in bytes. Runs on model replicas.

Ray's own ingress parses a body, pickles the request, unpickles the response and dumps it again, through a streaming call even
for an answer that does not stream. Here a body crosses as it came and an answer as it leaves, in one plain call where it does
not stream. docs/serving.md says what that gained.
"""

import asyncio
import logging
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
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GenerationError

from firewall_ray.engines.orphans import core_ends_with_actor
from serve_app.crossing import only_plain_errors
from serve_app.errors import error_body, first_problem
from serve_app.logs import warnings_at_once
from serve_app.models.answers import Endpoint, StreamPart, WholeAnswer, usage_of
from serve_app.models.chats import ChatDefaults
from serve_app.models.engine import EngineGuard
from serve_app.models.gpu_time import GpuTime
from serve_app.models.spans import AnswerSpans
from serve_app.otlp import replica_tracing
from serve_app.tracing import Carrier, Tracing

logger = logging.getLogger("ray.serve")

REQUEST_TYPES: dict[Endpoint, type[BaseModel]] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}


class WrongTypes(Exception):
    """A body that vLLM's own checks trip over."""


CLIENT_ERRORS = (ValidationError, WrongTypes, *VLLM_CLIENT_ERRORS)

# A form that contains only itself ({"$ref": "#"}) passes every check of vLLM's, and then allows no first token.
NO_SUCH_ANSWER = "No answer has the form that is asked for: is there a part of the schema or grammar that contains only itself?"

# How an event shows that it holds the usage and no text. In a JSON string, as text is, the quotes would be escaped.
NO_CHOICES = '"choices":[]'
ERROR = 'data: {"error"'
ROLE = '"role":"assistant"'


class Refused(Exception):
    """The request is not one that the model takes. answer: what its client is to get."""

    def __init__(self, answer: WholeAnswer) -> None:
        super().__init__()
        self.answer = answer


class ModelServer(LLMServer):
    """One replica of a model. Its request types, engine and everything else are Ray's.

    chats: what its clients' chats get. stall_s: as `EngineGuard`'s.
    """

    _tracing: Tracing | None = None  # for `__del__`, whatever becomes of `__init__`

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, chats: ChatDefaults, stall_s: float
    ) -> None:
        warnings_at_once()
        self._chats = chats
        self._stall_s = stall_s
        self._problem: str | None = None
        sizes = (llm_config.engine_kwargs.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
        self._gpu_time = GpuTime(math.prod(sizes))
        self._tracing = replica_tracing()
        self._spans = AnswerSpans(self._tracing, llm_config.model_id)
        await super().__init__(llm_config)

    async def start(self) -> None:
        core_ends_with_actor()  # vLLM's core is a child of this process, and would hold its GPUs after the replica was killed
        await super().start()
        assert self.engine is not None
        self._guard = EngineGuard(self.engine._engine_client, self._stall_s)
        self._problem = await self._warmed_up()

    async def _warmed_up(self) -> str | None:
        """Ask once as clients will: the first request otherwise takes seconds. What is wrong with chats, for `problem`."""
        asked: dict[Endpoint, dict[str, Any]] = {
            "completions": {"prompt": "Hello"},
            "chat": {"messages": [{"role": "user", "content": "Hello"}]},
        }
        problem = None
        for endpoint, body in asked.items():
            try:
                answer = await self.answer(endpoint, to_json({**body, "max_tokens": 1}))
                async for _ in self.stream(endpoint, to_json({**body, "max_tokens": 1, "stream": True})):
                    pass
            except Exception as e:
                logger.warning(
                    "The model %s did not answer a first request: %s: %s", self._llm_config.model_id, type(e).__name__, e
                )
                problem = f"it does not answer on {endpoint}"
                continue
            if answer.status != 200:
                logger.warning("The model %s refused a first request: %s", self._llm_config.model_id, answer.body.decode())
                problem = f"it does not answer on {endpoint}"
        return problem

    async def problem(self) -> str | None:
        """What /ready says of a replica that is up: None when it answers chats and completions."""
        return self._problem

    async def answer(self, endpoint: Endpoint, body: bytes, trace: Carrier | None = None) -> WholeAnswer:
        """The whole answer to a request that does not stream; a 4xx to a body that the model does not take. trace: see `Step`."""
        with self._spans.answering(endpoint, trace) as told:
            answer = await self._answer(endpoint, body)
            told(answer)
            return answer

    async def _answer(self, endpoint: Endpoint, body: bytes) -> WholeAnswer:
        began = time.perf_counter()
        with only_plain_errors(), self._gpu_time.answering() as gpu_s:
            try:
                (response,), _ = await self._begun(endpoint, from_json(body), began)
            except Refused as e:
                return e.answer
            usage = usage_of(response.usage.model_dump(), gpu_s())
            return WholeAnswer(200, to_json(response), usage, _since(began))

    async def stream(
        self, endpoint: Endpoint, body: bytes, trace: Carrier | None = None
    ) -> AsyncIterator[WholeAnswer | StreamPart]:
        """Server-sent events, one part with the usage among them; or one WholeAnswer, a 4xx."""
        with self._spans.answering(endpoint, trace) as told, self._gpu_time.answering() as gpu_s:
            async for part in self._parts(endpoint, body, gpu_s):
                told(part)
                yield part

    async def _parts(self, endpoint: Endpoint, body: bytes, gpu_s: Callable[[], float]) -> AsyncIterator[WholeAnswer | StreamPart]:
        began = time.perf_counter()
        parsed = from_json(body)
        options = parsed.get("stream_options")
        usage_is_wanted = bool(isinstance(options, dict) and options.get("include_usage"))
        if options is None or isinstance(options, dict):  # anything else is the client's error, for the model to name
            # Without include_usage, vLLM takes no notice of continuous_usage_stats. Nor may it because we ask for the usage.
            continuous = {} if usage_is_wanted or not options else {"continuous_usage_stats": False}
            parsed["stream_options"] = {**(options or {}), **continuous, "include_usage": True}
        with only_plain_errors():
            try:
                begun, events = await self._begun(endpoint, parsed, began)
            except Refused as e:
                yield e.answer
                return
            yield StreamPart("".join(begun).encode(), model_s=_since(began))
            # The first token leaves at once; of the others, those of some milliseconds leave together.
            async for batch in self._batch_output_stream(events):
                usage = None
                for event in batch:
                    if event.startswith(ERROR):  # in the engine's words, which are for its log
                        self._guard.blame()
                        raise RuntimeError("the engine failed in the middle of its answer")
                    if NO_CHOICES in event:
                        usage = usage_of(from_json(event.removeprefix("data: "))["usage"], gpu_s())
                chunk = "".join(event for event in batch if usage_is_wanted or NO_CHOICES not in event)
                yield StreamPart(chunk.encode(), usage=usage)

    async def decode(self, prompts: list[list[int]]) -> list[str]:
        """The texts of prompts that are token ids, as the model reads them; without ids that it does not have."""
        with only_plain_errors():
            assert self.engine is not None
            client = self.engine._engine_client
            size, tokenizer = client.model_config.get_vocab_size(), client.get_tokenizer()
            texts = []
            for ids in prompts:
                texts.append(tokenizer.decode([i for i in ids if 0 <= i < size], skip_special_tokens=True))
                await asyncio.sleep(0)  # others' tokens wait for this event loop
            return texts

    async def check_health(self) -> None:
        """Called by Serve's controller and by the ingress: neither is to import what vLLM raises."""
        with only_plain_errors():
            self._guard.check_health()
            await super().check_health()

    async def __del__(self) -> None:  # which Serve awaits when it stops a replica
        await super().__del__()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _begun(self, endpoint: Endpoint, body: dict[str, Any], began: float) -> tuple[list[Any], AsyncIterator[Any]]:
        """What the engine says first, and what it says then. Raises Refused, or whatever went wrong with the engine."""
        self._guard.require()
        begun: list[Any] = []
        try:
            async with self._guard.waiting():
                events = await self._ask(endpoint, body)
                # Who speaks is said beside the first token, and before an error that came in its place.
                while not begun or _is_role(begun[-1]):
                    begun.append(await anext(events))
        except CLIENT_ERRORS as e:
            raise Refused(_refusal_of(e, began)) from e
        except Exception as e:
            self._guard.blame()
            if isinstance(e, GenerationError) and is_structured(body):
                raise Refused(_refusal(400, NO_SUCH_ANSWER, began=began)) from e
            raise Refused(_refusal_of(e, began)) from e
        error = _error_of(begun[-1])
        if error is None:
            return begun, events
        if error.code >= 500:
            self._guard.blame()
            if is_structured(body):
                raise Refused(_refusal(400, NO_SUCH_ANSWER, began=began))
            raise RuntimeError("the engine failed before its answer began")
        raise Refused(_refusal(error.code, error.message, began=began))

    async def _ask(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[Any]:
        """The engine's responses: one, or a stream's events as text."""
        body["model"] = self._llm_config.model_id  # the client named the router
        if endpoint == "chat":
            body = self._chats.filled(body)
        return await self._run_request(request_of(endpoint, body), engine_method=endpoint)


def is_structured(body: dict[str, Any]) -> bool:
    """Whether the answer is to be of a form that the client says, by which the engine then is held while it writes."""
    response_format, tool_choice = body.get("response_format"), body.get("tool_choice")
    is_free = response_format is None or (isinstance(response_format, dict) and response_format.get("type") == "text")
    return not is_free or body.get("structured_outputs") is not None or tool_choice not in (None, "none", "auto")


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
    """Of one of CLIENT_ERRORS, or of what vLLM raised over a request that it does not take. Raises any other error."""
    if isinstance(error, ValidationError):
        return _refusal(400, *first_problem(error), began=began)
    if isinstance(error, CLIENT_ERRORS):
        return _refusal(400, str(error), began=began)
    # What goes wrong while a request is made ready for the engine, it wraps as an error of its own.
    root = error
    while root.__cause__ is not None:
        root = root.__cause__  # type: ignore[assignment]
    if isinstance(root, RecursionError):
        return _refusal(400, "The body has a part that refers to itself, or is too deeply nested.", began=began)
    mapped = create_error_response(root).error
    if mapped.code >= 500:
        raise error
    return _refusal(mapped.code, mapped.message, began=began)


def _refusal(status: int, message: str, code: str | None = None, param: str | None = None, *, began: float) -> WholeAnswer:
    """In vLLM's words, less the client's input that pydantic repeats in some of them."""
    words = message.partition(" [type=")[0]
    return WholeAnswer(status, error_body(status, words, code=code, param=param), None, _since(began))


def _is_role(event: Any) -> bool:
    return isinstance(event, str) and ROLE in event


def _error_of(first: Any) -> ErrorInfo | None:
    """What the engine says when it refuses: in place of an answer, or as a stream's first event once it has looked closer."""
    if isinstance(first, ErrorResponse):
        return first.error
    refused = isinstance(first, str) and first.startswith(ERROR)
    return ErrorInfo.model_validate(from_json(first.removeprefix("data: "))["error"]) if refused else None
