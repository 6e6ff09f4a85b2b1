"""An answer that streams: server-sent events, with what has to happen when they are over. Runs on ingress replicas."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# For nginx and its like, which would collect a stream's events, or keep them.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Events(StreamingResponse):
    """Server-sent events. `over` is awaited once, also where the client left before the first of them."""

    def __init__(self, chunks: AsyncIterator[bytes], over: Callable[[], Awaitable[None]], headers: Mapping[str, str]) -> None:
        super().__init__(chunks, 200, {**headers, **HEADERS}, "text/event-stream")
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._over()
