"""How the ingress reaches a model, and the models that are deployments of this application. Runs on ingress replicas."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from firewall_ray.config.serving import ServingConfig
from serve_app.models.answers import Answer, Endpoint, ModelUnavailable, NotReady, StreamPart, Unavailable, WholeAnswer
from serve_app.models.watch import ANSWER_S, ModelWatch

logger = logging.getLogger("ray.serve")


class ModelClient(Protocol):
    """One model of the pair."""

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool) -> Answer:
        """body: the client's, JSON. An Answer below 500, or raises ModelUnavailable. Cancelled, it frees the model."""
        ...

    async def check(self) -> None:
        """Raises whatever is wrong when the model would not answer now."""
        ...


class DeployedModel:
    """A `ModelServer` deployment of this application."""

    def __init__(self, handle: DeploymentHandle, serving: ServingConfig) -> None:
        self._handle = handle
        self._whole = handle.answer
        self._stream = handle.options(stream=True).stream
        self._watch = ModelWatch(handle)
        self._serving = serving

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool) -> Answer:
        """As the protocol says."""
        if self._watch.is_dead:
            raise ModelUnavailable("dead")
        call: Any = (self._stream if streams else self._whole).remote(endpoint, body)
        try:
            # A stream is waited for until it begins: how long it then takes is the client's to choose, by max_tokens.
            timeout_s = self._serving.first_token_timeout_s if streams else self._serving.answer_timeout_s
            async with asyncio.timeout(timeout_s) as deadline:
                with self._watch.waiting(deadline):
                    first = await (anext(call) if streams else call)
        except asyncio.CancelledError:  # the client left
            call.cancel()
            raise
        except TimeoutError as e:
            call.cancel()
            raise ModelUnavailable("dead" if self._watch.is_dead else "timeout") from e
        except Exception as e:
            raise ModelUnavailable(_why(e)) from e
        if isinstance(first, WholeAnswer):
            if first.status >= 500:
                raise ModelUnavailable("failed")
            return Answer(first.status, first.body, first.usage, first.model_s)
        assert isinstance(first, StreamPart)

        async def release() -> None:
            call.cancel()  # does nothing to a stream that ended; else the client left, and the model shall stop

        answer = Answer(200, b"", model_s=first.model_s, release=release)
        answer.body = _chunks(first, call, answer)
        return answer

    async def check(self) -> None:
        """As the protocol says."""
        await self._watch.check()
        # Broadcast, as there: a request of its own would wait behind the others.
        problems = await self._handle.broadcast("problem").results_async(timeout_s=ANSWER_S)
        if problems and all(problems):
            raise NotReady(problems[0])


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
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return "dead"
    logger.warning("A model's replica raised %s.", type(error).__name__)  # its message may repeat a prompt
    return "failed"
