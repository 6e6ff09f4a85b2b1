"""Who may call, and how much: key, requests in flight and size of the body, before anything else looks at a request.

A plain ASGI middleware around the ingress' endpoints, on each ingress replica. What it lets in has its whole body, and no key
any more, so nothing behind it can wait for a slow client or write a key into a log.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firewall_ray.config.serving import ServingConfig
from serve_app.api_keys import key_in
from serve_app.apis.messages.errors import in_the_apis_shape
from serve_app.body import BOM, unpacked
from serve_app.errors import RequestRefused, too_many
from serve_app.http.hosts import host_is_allowed
from serve_app.http.places import KeyPlaces

PROBES = frozenset({"/health", "/ready"})  # by whatever name: load balancers have their own
# And the page, and what the endpoints are: nothing that costs or tells anything of this server.
OPEN_PATHS = PROBES | {"/", "/openapi.json", "/docs"}
KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})  # the latter is what Anthropic's clients send
# After a 408 nobody knows where the next request would begin.
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: {"connection": "close"}}


class Admission:
    """on_refused: is told the status of every request that is turned away here. places: of keys; None: of this replica alone."""

    def __init__(
        self, app: ASGIApp, serving: ServingConfig, on_refused: Callable[[int], None], places: KeyPlaces | None = None
    ) -> None:
        self._app = app
        self._serving = serving
        self._max_body_bytes = int(serving.max_body_mib * 2**20)
        self._on_refused = on_refused
        self._num_in_flight = 0
        self._places = places or KeyPlaces(serving.max_in_flight_per_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":  # the lifespan; websockets lead nowhere
            await self._app(scope, receive, send)
            return
        try:
            key_name = self._caller(scope)
            if scope["method"] != "POST":  # nothing that costs
                await self._app(_let_in(scope, key_name), receive, send)
                return
            async with self._slot(key_name):
                body = await self._plain(scope, await self._body(scope, receive))
                await self._app(_let_in(scope, key_name), _replayed(body, receive), send)
        except RequestRefused as e:  # of this class: the application answers its own
            self._on_refused(e.status)
            response = in_the_apis_shape(scope, e.response())
            response.headers.update(_HEADERS.get(e.status, {}))
            await response(scope, receive, send)

    def _caller(self, scope: Scope) -> str | None:
        """The name of the caller's key; None where none is needed."""
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in PROBES and not host_is_allowed(headers.get("host"), self._serving):
            message = "This server is not asked by that name. Its operator can add it to serving.allowed_hosts."
            raise RequestRefused(403, message, code="host_not_allowed")
        if self._serving.api_keys == "disabled":
            # A page of any site can have its visitors' browsers post to a server that they reach. Only a key, which the page
            # does not have, or this keeps it out: not being able to read the answer does not.
            origin = headers.get("origin")
            if scope["method"] == "POST" and origin is not None and origin.partition("://")[2] != headers.get("host"):
                raise RequestRefused(403, "Without API keys, no requests from other sites' pages.", code="cross_origin")
            return None
        if path in OPEN_PATHS:
            return None
        authorization = [
            value if name == b"authorization" else b"Bearer " + value for name, value in scope["headers"] if name in KEY_HEADERS
        ]
        key = key_in(authorization, self._serving.keys)
        if key is None:
            said = "This API key is not known here." if authorization else "An API key is needed."
            ways = "as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            raise RequestRefused(401, f"{said} Send yours once, {ways}.", code="invalid_api_key")
        if key.expires_at is not None and datetime.now(UTC) >= key.expires_at:
            message = f"This API key was good until {key.expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}. Ask for a new one."
            raise RequestRefused(401, message, code="expired_api_key")
        return key.name

    @asynccontextmanager
    async def _slot(self, key_name: str | None) -> AsyncIterator[None]:
        """A place among the requests in flight, until the last byte is sent or the client has left."""
        if self._num_in_flight >= self._serving.max_in_flight:
            raise too_many("The server works on as many requests as it takes (serving.max_in_flight). Try again.")
        self._num_in_flight += 1
        try:
            if key_name is None:
                yield
                return
            async with self._places.place(key_name) as granted:
                if not granted:
                    limit = "serving.max_in_flight_per_key"
                    raise too_many(f"This API key has as many requests in flight as one may ({limit}). Try again.")
                yield
        finally:
            self._num_in_flight -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it. The declared length only saves reading what is too large: what counts is what comes."""
        with suppress(ValueError):
            self._check_size(int(Headers(scope=scope).get("content-length", "0")))
        body = bytearray()
        try:
            async with asyncio.timeout(self._serving.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestRefused(400, "The client left in the middle of its body.", code="incomplete_body")
                    body += message.get("body", b"")
                    self._check_size(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as e:
            limit = f"{self._serving.body_timeout_s:g} s (serving.body_timeout_s)"
            raise RequestRefused(408, f"The body did not arrive within {limit}.", code="body_timeout") from e

    async def _plain(self, scope: Scope, body: bytes) -> bytes:
        """The body unpacked, and without the mark that some editors put before a text."""
        encoding = Headers(scope=scope).get("content-encoding", "").strip()
        if encoding:
            # In a thread: a few kilobytes may be sixteen megabytes.
            body = await asyncio.to_thread(unpacked, body, encoding, self._max_body_bytes)
        return body.removeprefix(BOM)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            limit = f"{self._serving.max_body_mib:g} MiB (serving.max_body_mib)"
            raise RequestRefused(413, f"The body is larger than {limit}.", code="body_too_large")


def _let_in(scope: Scope, key_name: str | None) -> Scope:
    """The request with the name of its key in place of the key, and of its body as it is now."""
    headers = [(name, value) for name, value in scope["headers"] if name not in KEY_HEADERS and name != b"content-encoding"]
    return {**scope, "headers": headers, "state": {**scope.get("state", {}), "key_name": key_name}}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with the body that was read, and goes on where reading stopped."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
