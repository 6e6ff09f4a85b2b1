"""One id for a request, behind Ray Serve's own middleware, as in production: in the answer's header, the log and the record."""

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from callers import CHAT, KEYS
from gateway_fakes import FakeRouter, Fakes
from ray.serve import context as serve_context
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.logging_utils import ServeContextFilter

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Proxy:
    """What Serve's proxy and replica do around the application: the id's middleware, and the context that logs read."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"])[b"x-request-id"].decode("latin-1")
        serve_context._serve_request_context.set(serve_context._RequestContext(route="/", request_id=given))
        await self._app(scope, receive, send)


def ask(fakes: Fakes, path: str = "/v1/chat/completions", body: Any = CHAT, headers: Any = None) -> httpx.Response:
    app = RequestIdMiddleware(Proxy(fakes.app))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(send())


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """Warnings, with what Serve's handlers put into each line."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler(logging.WARNING)
    handler.addFilter(ServeContextFilter())
    logging.getLogger("ray.serve").addHandler(handler)
    yield records
    logging.getLogger("ray.serve").removeHandler(handler)


@pytest.mark.parametrize("given", ["a", "req_0123.AZ-z:/+=@", "x" * 128, "6f1c9a0e-77b2-4c1d-9a52-0b7a2f6a2b11"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_clients_id_is_the_requests_everywhere(log: list[logging.LogRecord], given: str, streams: bool) -> None:
    fakes = Fakes(FakeRouter(error=RuntimeError()))
    response = ask(fakes, body={**CHAT, "stream": streams}, headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert [exchange.request_id for exchange in fakes.recorder.exchanges] == [given]
    assert [(record.getMessage()[:18], record.request_id) for record in log] == [("The router failed ", given)]  # type: ignore[attr-defined]


def test_without_one_ray_serves_is_taken() -> None:
    fakes = Fakes()
    (answered,) = ask(fakes).headers.get_list("x-request-id")
    assert UUID.fullmatch(answered)
    assert [exchange.request_id for exchange in fakes.recorder.exchanges] == [answered]
    assert ask(fakes).headers["x-request-id"] != answered


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "<script>", 'a"b', "a,b", "ä", "a\tb"])
def test_in_place_of_an_id_that_is_none_one_is_made_and_said(log: list[logging.LogRecord], given: str) -> None:
    """Serve's middleware repeats what it was sent; ours stands behind it."""
    fakes = Fakes(FakeRouter(error=RuntimeError()))
    response = ask(fakes, headers=[(b"x-request-id", given.encode("latin-1"))])
    (made,) = [value for value in response.headers.get_list("x-request-id") if value != given]
    assert UUID.fullmatch(made)
    assert [exchange.request_id for exchange in fakes.recorder.exchanges] == [made]
    assert [record.request_id for record in log] == [made]  # type: ignore[attr-defined]


def test_of_two_ids_none_is_taken() -> None:
    fakes = Fakes()
    response = ask(fakes, headers=[(b"x-request-id", b"one"), (b"x-request-id", b"two")])
    (exchange,) = fakes.recorder.exchanges
    assert exchange.request_id in response.headers.get_list("x-request-id")
    assert exchange.request_id not in ("one", "two")


@pytest.mark.parametrize(
    ("serving", "path", "body", "status"),
    [
        ({"api_keys": KEYS}, "/v1/chat/completions", CHAT, 401),
        ({"max_body_mib": 1e-6}, "/v1/chat/completions", CHAT, 413),
        ({}, "/v1/chat/completions", {"model": "gpt-4", "messages": []}, 404),
        ({}, "/v1/nowhere", {}, 404),
        ({}, "/v1/route", {"prompt": "a"}, 200),
        ({}, "/health", {}, 405),
    ],
)
@pytest.mark.parametrize(("given", "num_said"), [("req-1", 1), ("not an id", 2)])
def test_every_answer_says_its_id(serving: Any, path: str, body: Any, status: int, given: str, num_said: int) -> None:
    response = ask(Fakes(**serving), path, body, {"x-request-id": given})
    assert response.status_code == status
    said = response.headers.get_list("x-request-id")
    assert (len(said), given in said) == (num_said, True)


def test_a_request_that_ends_leaves_its_id_to_no_other() -> None:
    fakes = Fakes()
    ask(fakes, headers={"x-request-id": "not an id"})
    ask(fakes, headers={"x-request-id": "req-2"})
    first, second = (exchange.request_id for exchange in fakes.recorder.exchanges)
    assert first is not None
    assert UUID.fullmatch(first)
    assert second == "req-2"
