"""How the ingress reaches a model, and the models that are deployments of this application. Runs on ingress replicas."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from firewall_ray.config.serving import ServingConfig
from serve_app.calls import cancel
from serve_app.models.answers import (
    Answer,
    Endpoint,
    EngineCrashed,
    EngineDead,
    ModelUnavailable,
    NotReady,
    StreamPart,
    Unavailable,
    WholeAnswer,
)
from serve_app.models.in_time import in_time
from serve_app.models.watch import ANSWER_S, ModelWatch
from serve_app.tracing import recorded_headers

logger = logging.getLogger("ray.serve")


class ModelClient(Protocol):
    """One model of the pair."""

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        """body: the client's, JSON. session: of a conversation, whose turns one replica should answer, as it holds their cache.

        An Answer below 500, or raises ModelUnavailable. Cancelled, it frees the model.
        """
        ...

    async def decode(self, prompts: list[list[int]]) -> list[str] | None:
        """The texts of prompts that are token ids; None where they can't be known here. May raise when the model is dead."""
        ...

    async def check(self) -> None:
        """Raises whatever is wrong when the model would not answer now."""
        ...


class DeployedModel:
    """A `ModelServer` deployment of this application. key: the model's name in the run's config, for the log."""

    def __init__(self, key: str, handle: DeploymentHandle, serving: ServingConfig) -> None:
        self._handle = handle
        self._whole = handle.answer
        self._stream = handle.options(stream=True).stream
        self._decode = handle.decode
        self._watch = ModelWatch(key, handle, serving.engine_stall_s)
        self._serving = serving

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        """As the protocol says."""
        if self._watch.is_dead:
            raise ModelUnavailable("dead", self._watch.expected_s)
        method = self._stream if streams else self._whole
        if session is not None:
            method = method.options(session_id=session)
        trace = recorded_headers()
        call: Any = method.remote(endpoint, body) if trace is None else method.remote(endpoint, body, trace)
        try:
            # A stream is waited for until it begins: how long it then takes is the client's to choose, by max_tokens.
            timeout_s = self._serving.first_token_timeout_s if streams else self._serving.answer_timeout_s
            async with asyncio.timeout(timeout_s) as deadline:
                with self._watch.waiting(deadline):
                    first = await (anext(call) if streams else call)
        except asyncio.CancelledError:  # the client left
            cancel(call)
            raise
        except TimeoutError as e:
            cancel(call)
            raise self._unavailable("dead" if self._watch.is_dead else "timeout") from e
        except Exception as e:
            raise self._unavailable(_why(e)) from e
        if isinstance(first, WholeAnswer):
            if first.status >= 500:
                raise ModelUnavailable("failed")
            return Answer(first.status, first.body, first.usage, first.model_s)
        assert isinstance(first, StreamPart)

        async def release() -> None:
            cancel(call)  # does nothing to a stream that ended; else the client left, and the model shall stop

        answer = Answer(200, b"", model_s=first.model_s, release=release)
        answer.body = _chunks(first, in_time(call, self._serving.token_timeout_s, self._serving.stream_timeout_s), answer)
        return answer

    async def decode(self, prompts: list[list[int]]) -> list[str] | None:
        """As the protocol says."""
        if self._watch.is_dead:
            raise ModelUnavailable("dead")
        texts: list[str] = await self._decode.remote(prompts)
        return texts

    async def check(self) -> None:
        """As the protocol says."""
        await self._watch.check()
        # Broadcast, as there: a request of its own would wait behind the others.
        problems = await self._handle.broadcast("problem").results_async(timeout_s=ANSWER_S)
        if problems and all(problems):
            raise NotReady(problems[0])

    def _unavailable(self, why: Unavailable) -> ModelUnavailable:
        return ModelUnavailable(why, self._watch.expected_s if why in ("dead", "crashed") else 1.0)


async def _chunks(first: StreamPart, rest: AsyncIterator[StreamPart], answer: Answer) -> AsyncIterator[bytes]:
    """The chunks of a stream that has begun; the usage near its end goes into `answer`."""
    yield first.chunk
    async for part in rest:
        # A part near the end has it; those after it have none.
        answer.usage = part.usage or answer.usage
        if part.chunk:
            yield part.chunk


def _why(error: Exception) -> Unavailable:
    if isinstance(error, BackPressureError):
        return "overloaded"
    if isinstance(error, EngineCrashed):
        return "crashed"
    if isinstance(error, RayActorError | DeploymentUnavailableError | EngineDead):
        return "dead"
    logger.warning("A model's replica raised %s.", type(error).__name__)  # its message may repeat a prompt
    return "failed"
