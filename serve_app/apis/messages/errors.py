"""Refusals in Anthropic's shape: {"type": "error", "error": {"type", "message"}}. Runs in the ingress."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json
from starlette.responses import Response

PATH = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_of(status: int, message: str) -> dict[str, Any]:
    """The type is Anthropic's for the status: the caller's fault below 500, else ours."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def in_the_apis_shape(scope: Mapping[str, Any], response: Response) -> Response:
    """A response to the request of this scope, of which a refusal is in OpenAI's shape."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if response.status_code < 400 or not (path == PATH or path.startswith(f"{PATH}/")):
        return response
    response.body = to_json(error_of(response.status_code, from_json(bytes(response.body))["error"]["message"]))
    response.headers["content-length"] = str(len(response.body))
    return response
