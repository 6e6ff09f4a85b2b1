"""Every refusal in OpenAI's error shape: {"error": {"message", "type", "param", "code"}}. Made on ingress and model replicas.

A message never repeats what the client sent but for a model's name and the path: errors end up in other people's logs.
"""

import re
from collections.abc import Awaitable, Callable, Mapping

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from firewall_ray.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


# Among the fields in pydantic's path to a problem: ChatCompletionUserMessageParam, list[constrained-int], function-wrap[...].
_NO_FIELD = re.compile(r"[A-Z]\w*|.*\[.*|str|int")


class RequestRefused(UserError):
    """A request that is not served. status: HTTP; code and param: OpenAI's, a machine-readable reason and a field.

    retry_after_s: when to try again, whole seconds; only for what passes by itself. headers: of the response, besides.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})
        self.status, self.message, self.code, self.param, self.retry_after_s = status, message, code, param, retry_after_s

    def response(self) -> Response:
        """What the client gets."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.code == "model_crashed":
            # OpenAI's clients would ask twice more.
            headers["x-should-retry"] = "false"
        return error_response(self.status, self.message, code=self.code, param=self.param, headers=headers)


def too_many(message: str) -> RequestRefused:
    """More than a limit of ours lets in just now."""
    return RequestRefused(429, message, code="rate_limit_exceeded", retry_after_s=1)


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """JSON. The type is OpenAI's for the status: the caller's fault below 500, else ours."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return to_json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_response(
    status: int, message: str, *, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """As `error_body`, ready to send."""
    return Response(error_body(status, message, code=code, param=param), status, headers, "application/json")


def first_problem(error: ValidationError) -> tuple[str, str, str | None]:
    """Message, code and field of the first problem. pydantic lists one for every arm of a union, and repeats the input.

    Of several arms, the one that the value was meant for: whose type it has. Five stop strings are no "valid string", but too
    many.
    """
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    where = _field(problems[0]["loc"])
    arms = [problem for problem in problems if _field(problem["loc"]) == where]
    meant = next((arm for arm in arms if not arm["type"].endswith("_type")), arms[0])
    return f"{where or 'body'}: {meant['msg']}", meant["type"], where or None


def _field(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if not _NO_FIELD.fullmatch(str(part)))


Handler = Callable[[Request, Exception], Awaitable[Response]]


def add_error_handlers(app: Starlette, shaped: Callable[[Scope, Response], Response]) -> None:
    """Have `app` answer every exception in OpenAI's shape, or what `shaped` makes of that for the request's endpoint."""

    def handling(handler: Handler) -> Handler:
        async def handle(request: Request, error: Exception) -> Response:
            return shaped(request.scope, await handler(request, error))

        return handle

    app.add_exception_handler(RequestRefused, handling(_refused))
    app.add_exception_handler(ValidationError, handling(_invalid))
    app.add_exception_handler(HTTPException, handling(_http_error))
    app.add_exception_handler(Exception, handling(_unexpected))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return error.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    message, code, param = first_problem(error)
    return error_response(400, message, code=code, param=param)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}", headers=error.headers)


# Without the exception's words, which may repeat a prompt. Starlette raises it again after this, so the log has it.
async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(500, "The server failed to answer this request. Trying again may help.")
