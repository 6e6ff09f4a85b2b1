"""Every refusal in OpenAI's error shape: {"error": {"message", "type", "param", "code"}}. Runs in the ingress.

A message never repeats what the client sent but for a model's name: errors end up in other people's logs.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from firewall_ray.errors import UserError


class RequestRefused(UserError):
    """A request that cannot be served as it is. status: a 4xx; code and param: OpenAI's, a machine-readable reason and a field."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def error_response(status: int, message: str, *, code: str | None = None, param: str | None = None) -> JSONResponse:
    """The type is OpenAI's for the status: the caller's fault below 500, else ours."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def add_error_handlers(app: FastAPI) -> None:
    """Have `app` answer every exception in OpenAI's shape."""
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OpenAIHTTPException, _engine_error)
    app.add_exception_handler(HTTPException, _http_error)
    for client_error in VLLM_CLIENT_ERRORS:
        app.add_exception_handler(client_error, _engine_refused)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestRefused)
    return error_response(error.status, error.message, code=error.code, param=error.param)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first problem of a body that is not what the endpoint takes. pydantic lists one for every arm of a union."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, f"The body is not JSON: {first['ctx']['error']}.", code="json_invalid")
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return error_response(400, f"{where or 'body'}: {first['msg']}", code=first["type"], param=where or None)


async def _engine_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OpenAIHTTPException)
    return error_response(error.status_code, error.message)


async def _engine_refused(request: Request, error: Exception) -> JSONResponse:
    return error_response(400, str(getattr(error, "cause", error)))  # Ray wraps what a replica raised


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return error_response(500, "The server failed to answer this request. Trying again may help.")
