"""A model at an OpenAI-compatible server elsewhere, with its own URL and key. Runs on ingress replicas.

It only waits on the network, so it needs no deployment. Its answers name the model by the pair's id, as local ones do.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import httpx
from pydantic_core import from_json, to_json

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.serving import ServingConfig
from firewall_ray.engines.openai import api_key
from firewall_ray.engines.prompt_choice import prompt_format
from serve_app.errors import error_body
from serve_app.models.answers import Answer, Endpoint, ModelUnavailable, Unavailable, Usage, usage_of
from serve_app.models.chats import chat_defaults
from serve_app.models.event_stream import event_data

PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}

# Statuses that say that the server has no room now, and those that the client's own body caused. Any other that is no success
# is between us and the server, as 401 (our key) and 404 (our URL or model id) are: the client cannot mend it.
OVERLOADED = frozenset({429, 503, 529})
CLIENTS_FAULT = frozenset({400, 413, 415, 422})

CONNECT_TIMEOUT_S = 5.0  # a host that does not even take the connection is dead, however long an answer may take
CHECK_TIMEOUT_S = 5.0

logger = logging.getLogger("ray.serve")


class RemoteModel:
    """A `ModelClient`. key: the model's name in the run's config. Raises ConfigError where its API key is not set here."""

    def __init__(self, key: str, config: OpenAIModelConfig, serving: ServingConfig) -> None:
        self._key = key
        self._config = config
        self._serving = serving
        self._chats = chat_defaults(prompt_format(key, config))
        secret = api_key(key, config)
        limit = config.max_concurrency
        self._client = httpx.AsyncClient(
            base_url=config.base_url.rstrip("/"),
            headers={} if secret is None else {"authorization": f"Bearer {secret}"},
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
        )
        self._num_in_flight = 0

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        """As the protocol says. After its first event, a stream may pause for `first_token_timeout_s` again."""
        # httpx would have it wait for a connection, while the other model may have room.
        if self._num_in_flight >= self._config.max_concurrency:
            raise ModelUnavailable("overloaded")
        content, usage_is_wanted = self._body_for_server(endpoint, body, streams)
        timeout_s = self._serving.first_token_timeout_s if streams else self._serving.answer_timeout_s
        request = self._client.stream(
            "POST",
            PATHS[endpoint],
            content=content,
            headers={"content-type": "application/json"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )
        async with AsyncExitStack() as held:
            held.enter_context(self._slot())
            try:
                # httpx' own timeout starts again with every byte.
                async with asyncio.timeout(timeout_s):
                    response = await held.enter_async_context(request)
                    if response.status_code in CLIENTS_FAULT:
                        return Answer(response.status_code, _their_error(response.status_code, await response.aread()))
                    if not response.is_success:
                        logger.warning("The server of models.%s answered %d.", self._key, response.status_code)
                        raise ModelUnavailable("overloaded" if response.status_code in OVERLOADED else "failed")
                    if not streams:
                        return self._whole(await response.aread())
                    events = event_data(response.aiter_bytes())
                    first = await anext(events)
                    answer = Answer(200, b"")
                    begun = self._renamed(first, answer, usage_is_wanted)
            except TimeoutError as e:
                raise ModelUnavailable("timeout") from e
            except httpx.HTTPError as e:
                raise ModelUnavailable(_why(e)) from e
            except (ValueError, StopAsyncIteration) as e:
                logger.warning("The server of models.%s sent what no OpenAI-compatible server sends.", self._key)
                raise ModelUnavailable("failed") from e
            answer.body = self._chunks(begun, events, answer, usage_is_wanted)
            answer.release = held.pop_all().aclose
            return answer

    async def check(self) -> None:
        """As the protocol says: the server lists its models."""
        (await self._client.get("/models", timeout=CHECK_TIMEOUT_S)).raise_for_status()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        self._num_in_flight += 1
        try:
            yield
        finally:
            self._num_in_flight -= 1

    def _body_for_server(self, endpoint: Endpoint, body: bytes, streams: bool) -> tuple[bytes, bool]:
        """The client's request under the server's model id, and whether the client wants a stream's usage: we always do."""
        parsed = self._chats.filled(from_json(body)) if endpoint == "chat" else from_json(body)
        parsed["model"] = self._config.model
        options = parsed.get("stream_options")
        if streams and (options is None or isinstance(options, dict)):  # anything else is for the server to refuse
            parsed["stream_options"] = {**(options or {}), "include_usage": True}
        return to_json(parsed), isinstance(options, dict) and bool(options.get("include_usage"))

    def _whole(self, body: bytes) -> Answer:
        parsed = from_json(body)
        if not isinstance(parsed, dict) or "choices" not in parsed:
            raise ValueError("not a completion")
        parsed["model"] = self._key
        return Answer(200, to_json(parsed), _usage_of(parsed))

    async def _chunks(
        self, begun: bytes, events: AsyncIterator[bytes], answer: Answer, usage_is_wanted: bool
    ) -> AsyncIterator[bytes]:
        """The stream's events one by one, each under the pair's id. The usage at its end goes into `answer`."""
        # Empty where the first event held the usage alone.
        if begun:
            yield begun
        async for data in events:
            if data == b"[DONE]":
                yield b"data: [DONE]\n\n"
                return
            if chunk := self._renamed(data, answer, usage_is_wanted):
                yield chunk
        # The gateway tells the client: an answer that was cut off must not look whole.
        raise ValueError("the stream ended before it was done")

    def _renamed(self, data: bytes, answer: Answer, usage_is_wanted: bool) -> bytes:
        """One event; nothing where it holds only the usage, for which the client did not ask. Raises ValueError on an error."""
        parsed = from_json(data)
        if not isinstance(parsed, dict) or "choices" not in parsed:
            raise ValueError("not a piece of a completion")
        answer.usage = _usage_of(parsed) or answer.usage
        if not usage_is_wanted:
            parsed.pop("usage", None)
            if not parsed["choices"]:
                return b""
        parsed["model"] = self._key
        return b"data: " + to_json(parsed) + b"\n\n"


def _usage_of(parsed: dict[str, Any]) -> Usage | None:
    usage = parsed.get("usage")
    return usage_of(usage) if isinstance(usage, dict) else None


def _their_error(status: int, body: bytes) -> bytes:
    """The server's own words where they are in OpenAI's shape."""
    try:
        if isinstance(from_json(body)["error"]["message"], str):
            return body
    except (ValueError, TypeError, KeyError):
        pass
    return error_body(status, "The model refused the request.")


def _why(error: httpx.HTTPError) -> Unavailable:
    if isinstance(error, httpx.PoolTimeout):
        return "overloaded"
    if isinstance(error, httpx.ConnectTimeout):
        return "dead"
    return "timeout" if isinstance(error, httpx.TimeoutException) else "dead"
