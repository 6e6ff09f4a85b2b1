"""A server's span for each request that is let in and may cost: its trace goes on from the client's, or begins. An ASGI middleware.

Behind admission, so whoever has no key makes no spans, and a body that comes slowly is no part of the time. What a chat's or a
completion's span says of routing and models, `recording.spans` adds.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.tracing import CURRENT, HEADERS, Carrier, Tracing


class Traced:
    """Around the endpoints, where tracing is on."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        step = self._tracing.begin("POST", _carrier(scope), "SERVER")
        state = scope.get("state", {})
        step.set(
            {
                "http.request.method": "POST",
                "url.scheme": scope.get("scheme"),
                "firewall.request_id": state.get("request_id"),
                "firewall.key": state.get("key_name"),
            }
        )

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                step.set({"http.response.status_code": message["status"]})
                if message["status"] >= 500:
                    step.failed(str(message["status"]))
            await send(message)

        token = CURRENT.set(step)
        try:
            await self._app(scope, receive, told)
        except Exception as e:  # which becomes a 500 further out
            step.set({"http.response.status_code": 500})
            step.failed(type(e).__name__)
            raise
        finally:
            CURRENT.reset(token)
            if "endpoint" in scope:  # a path that is none here is whatever a client sends
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                step.rename(f"POST {path}")
                step.set({"http.route": path, "url.path": scope["path"]})
            step.end()


def _carrier(scope: Scope) -> Carrier:
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in HEADERS}
