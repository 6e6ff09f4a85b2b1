"""One id for a request: in its answer's header, in the log, in the decision log and in its trace. An ASGI middleware.

It is Ray Serve's. Serve's proxy takes the client's `x-request-id`, else makes one, passes it on as that header, says it in every
answer's, its own refusals included, and has it in each line that is logged while a request is worked on. But it takes whatever a
client sends, thousands of characters too: in place of an id that is none, one is made here.
"""

import re
from dataclasses import replace
from uuid import uuid4

from ray.serve import context as serve_context
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
# Those of the usual proxies and clients, base64 too.
_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """Around everything else. Behind it, `request_id` is in the scope's state."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        request_id = given[0].decode() if len(given) == 1 and _ID.fullmatch(given[0]) else None
        if request_id is None:
            request_id = str(uuid4())
            send = _saying(request_id, send)
            # For the lines that this replica and those that it asks log of the request.
            known = serve_context._get_serve_request_context()
            serve_context._serve_request_context.set(replace(known, request_id=request_id))
        await self._app({**scope, "state": {**scope.get("state", {}), "request_id": request_id}}, receive, send)


def _saying(request_id: str, send: Send) -> Send:
    """A `send` that puts the id into the answer's header, beside what Serve's proxy repeats of the client's."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append(HEADER, request_id)
        await send(message)

    return sending
