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
from serve_app.models.breaker import Breaker
from serve_app.models.chats import chat_defaults
from serve_app.models.event_stream import event_data
from serve_app.models.in_time import in_time
from serve_app.models.outage import MAX_RETRY_AFTER_S
from serve_app.tracing import headers

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
        self._breaker = Breaker(key)
        self._takes_stream_options = True

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool, session: str | None = None) -> Answer:
        """As the protocol says."""
        # httpx would have it wait for a connection, while the other model may have room.
        if self._num_in_flight >= self._config.max_concurrency:
            raise ModelUnavailable("overloaded")
        with self._breaker.closed():
            try:
                return await self._ask(endpoint, body, streams)
            except _StreamOptionsRefused:
                # Asked for by us, and not by the client. This server counts no tokens of streams, from now on.
                self._takes_stream_options = False
                return await self._ask(endpoint, body, streams)

    async def _ask(self, endpoint: Endpoint, body: bytes, streams: bool) -> Answer:
        content, usage_is_wanted, asked_for_usage = self._body_for_server(endpoint, body, streams)
        timeout_s = self._serving.first_token_timeout_s if streams else self._serving.answer_timeout_s
        request = self._client.stream(
            "POST",
            PATHS[endpoint],
            content=content,
            headers={"content-type": "application/json", **headers()},
            timeout=httpx.Timeout(max(timeout_s, self._serving.token_timeout_s), connect=CONNECT_TIMEOUT_S),
        )
        async with AsyncExitStack() as held:
            held.enter_context(self._slot())
            try:
                # httpx' own timeout starts again with every byte.
                async with asyncio.timeout(timeout_s):
                    response = await held.enter_async_context(request)
                    if response.status_code in CLIENTS_FAULT:
                        words = await response.aread()
                        if asked_for_usage and b"stream_options" in words:
                            raise _StreamOptionsRefused
                        return Answer(response.status_code, _their_error(response.status_code, words))
                    if not response.is_success:
                        logger.warning("The server of models.%s answered %d.", self._key, response.status_code)
                        if response.status_code in OVERLOADED:
                            raise ModelUnavailable("overloaded", _retry_after_s(response.headers.get("retry-after")))
                        raise ModelUnavailable("failed")
                    if not streams:
                        return self._whole(await response.aread())
                    events = event_data(response.aiter_bytes())
                    relay = _Relay(self._key, usage_is_wanted)
                    begun = relay.event(await anext(events))
            except TimeoutError as e:
                raise ModelUnavailable("timeout") from e
            except httpx.HTTPError as e:
                raise ModelUnavailable(_why(e)) from e
            except (ValueError, StopAsyncIteration) as e:
                logger.warning("The server of models.%s sent what no OpenAI-compatible server sends.", self._key)
                raise ModelUnavailable("failed") from e
            later = in_time(events, self._serving.token_timeout_s, self._serving.stream_timeout_s)
            relay.answer.body = relay.chunks(begun, later)
            relay.answer.release = held.pop_all().aclose
            return relay.answer

    async def decode(self, prompts: list[list[int]]) -> list[str] | None:
        """As the protocol says: there is no endpoint for it."""
        return None

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

    def _body_for_server(self, endpoint: Endpoint, body: bytes, streams: bool) -> tuple[bytes, bool, bool]:
        """The client's request under the server's model id; whether the client wants a stream's usage, which we always do; and
        whether it is us who put in `stream_options`.
        """
        parsed = self._chats.filled(from_json(body)) if endpoint == "chat" else from_json(body)
        parsed["model"] = self._config.model
        options = parsed.get("stream_options")
        is_wanted = isinstance(options, dict) and bool(options.get("include_usage"))
        # Anything else is for the server to refuse.
        we_ask = streams and self._takes_stream_options and not is_wanted and (options is None or isinstance(options, dict))
        if we_ask:
            # A usage in every event is what the client gets who asked for the usage.
            parsed["stream_options"] = {k: v for k, v in (options or {}).items() if k != "continuous_usage_stats"}
            parsed["stream_options"]["include_usage"] = True
        return to_json(parsed), is_wanted, we_ask and options is None

    def _whole(self, body: bytes) -> Answer:
        parsed = _piece(body)
        parsed["model"] = self._key
        return Answer(200, to_json(parsed), _usage_of(parsed))


class _StreamOptionsRefused(Exception):
    """The server knows no `stream_options`, which its client did not send."""


class _Relay:
    """A stream on its way: its events under the pair's id, what it used up, and whether it is whole.

    key: that id. usage_is_wanted: by the client.
    """

    def __init__(self, key: str, usage_is_wanted: bool) -> None:
        self.answer = Answer(200, b"")
        self._key = key
        self._usage_is_wanted = usage_is_wanted
        self._is_finished: dict[int, bool] = {}  # by the choice's index

    async def chunks(self, begun: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """begun: what became of the first event, of which the stream begins; empty where it held the usage alone."""
        if begun:
            yield begun
        async for data in events:
            if data == b"[DONE]":
                break
            if chunk := self.event(data):
                yield chunk
        else:
            # Some servers just close. But an answer that was cut off must not look whole: the gateway tells the client.
            if not self._is_finished or not all(self._is_finished.values()):
                raise ValueError("the stream ended before it was done")
        yield b"data: [DONE]\n\n"

    def event(self, data: bytes) -> bytes:
        """One event; nothing where it holds only the usage, for which the client did not ask. Raises ValueError on an error."""
        parsed = _piece(data)
        for choice in parsed["choices"]:
            index = choice.get("index", 0)
            self._is_finished[index] = self._is_finished.get(index, False) or choice.get("finish_reason") is not None
        self.answer.usage = _usage_of(parsed) or self.answer.usage
        if not self._usage_is_wanted:
            parsed.pop("usage", None)
            if not parsed["choices"]:
                return b""
        parsed["model"] = self._key
        return b"data: " + to_json(parsed) + b"\n\n"


def _piece(data: bytes) -> dict[str, Any]:
    """An answer or an event of one. Raises ValueError where it is none: some send an error's words with an empty choice."""
    parsed = from_json(data)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("choices"), list) or parsed.get("error") is not None:
        raise ValueError("not a piece of a completion")
    if not all(isinstance(choice, dict) for choice in parsed["choices"]):
        raise ValueError("a choice that is none")
    if any(choice.get("error") is not None or choice.get("finish_reason") == "error" for choice in parsed["choices"]):
        raise ValueError("a choice that failed")
    return parsed


def _retry_after_s(header: str | None) -> float:
    """What the server says. A date, which HTTP allows too, nobody sends here."""
    return min(float(header), MAX_RETRY_AFTER_S) if header is not None and header.isdecimal() else 1.0


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
