"""Who is let in, and with how large a body."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from callers import ALICE, BOB, KEYS, bearer, error_of, get
from gateway_fakes import Fakes
from starlette.types import Message, Scope

from serve_app.http.admission import Admission

GOOD = b'{"prompt": "Why?"}'

# Keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, bearer("fw-wrong"), bearer(""), {"authorization": ALICE}, {"api-key": ALICE}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/v1/{name}") for name in ("chat/completions", "completions", "route")),
        *(
            ("GET", path)
            for path in ("/v1/models", "/v1/models/firewall", "/stats", "/elsewhere", "/v1//health", "/health/x", "/READY")
        ),
        *(("HEAD", "/v1/models"), ("OPTIONS", "/v1/chat/completions"), ("DELETE", "/v1/models/firewall")),
    ],
)
def test_nothing_is_done_without_a_key(method: str, path: str, headers: dict[str, str]) -> None:
    fakes = Fakes(api_keys=KEYS)
    response = get(fakes, path, method, headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert error_of(response)["code"] == "invalid_api_key"
    assert fakes.weak.bodies == fakes.strong.bodies == fakes.router.calls == fakes.recorder.exchanges == []
    assert fakes.refused == [401]


@pytest.mark.parametrize("path", ["/health", "/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_need_no_key(path: str, method: str) -> None:
    assert get(Fakes(api_keys=KEYS), path, method).status_code == 200


def test_probes_need_no_key_under_a_route_prefix_either() -> None:
    """Ray Serve hands on the whole path, and the application's prefix as its root."""
    fakes = Fakes(api_keys=KEYS)
    transport = httpx.ASGITransport(fakes.app, root_path="/llm")

    async def statuses() -> list[int]:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return [(await client.get(path)).status_code for path in ("/llm/health", "/llm/v1/models", "/llm")]

    assert asyncio.run(statuses()) == [200, 401, 401]


def test_the_name_of_the_key_goes_with_the_request_and_the_key_does_not() -> None:
    fakes = Fakes(api_keys=KEYS)
    for key in (ALICE, BOB):
        assert fakes.chat(headers=bearer(key)).status_code == 200
    assert [exchange.key_name for exchange in fakes.recorder.exchanges] == ["alice", "bob"]
    assert not any(key.encode() in body for key in (ALICE, BOB) for body in fakes.weak.bodies)


def test_nothing_behind_admission_sees_the_key() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def receive() -> Message:
        return {"type": "http.request"}

    headers = [(b"authorization", f"Bearer {ALICE}".encode()), (b"x-firewall-conversation", b"7")]
    for method in ("POST", "GET"):
        scope = {"type": "http", "method": method, "path": "/v1/route", "headers": headers, "state": {"kept": 1}}
        asyncio.run(Admission(app, Fakes(api_keys=KEYS).serving, lambda status: None)(scope, receive, receive))
        assert seen[-1]["state"] == {"kept": 1, "key_name": "alice"}
        assert ALICE not in repr(seen[-1])
        assert scope["state"] == {"kept": 1}  # the server's own


def test_without_keys_everybody_is_let_in_and_has_no_name() -> None:
    fakes = Fakes()
    assert fakes.chat(headers=bearer("none")).status_code == 200
    assert fakes.recorder.exchanges[0].key_name is None


def test_neither_key_is_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    fakes = Fakes(api_keys=KEYS)
    fakes.router.error = RuntimeError()
    with caplog.at_level(logging.DEBUG):
        fakes.chat(headers=bearer(ALICE))
        fakes.chat(headers=bearer("fw-wrong"))
    assert caplog.records  # the router failed
    assert ALICE not in caplog.text
    assert "fw-wrong" not in caplog.text


# Other sites' pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(("http://gateway", 200), ("https://gateway", 200), (None, 200)),
        *(
            ("http://evil.example", 403),
            ("http://gateway:8000", 403),
            ("http://gateway.evil.example", 403),
            ("null", 403),
            ("", 403),
        ),
        *(("http://evil.example://gateway", 403), ("gateway", 403)),
    ],
)
def test_without_keys_no_other_sites_page_can_post(origin: str | None, status: int) -> None:
    """A form, or fetch with text/plain, needs no CORS to send: its visitors' browsers would spend this server's time."""
    fakes = Fakes()
    headers = {"content-type": "text/plain"} | ({} if origin is None else {"origin": origin})
    response = fakes.chat(headers=headers)
    assert response.status_code == status
    assert len(fakes.weak.bodies) == (status == 200)
    if status == 403:
        assert error_of(response)["code"] == "cross_origin"


def test_a_page_elsewhere_may_look_where_nothing_is_done() -> None:
    """A link to the page here, or a probe; without CORS its scripts cannot read the answer."""
    for path in ("/", "/health", "/v1/models"):
        response = get(Fakes(), path, headers={"origin": "http://evil.example"})
        assert response.status_code == 200
        assert [name for name in response.headers if name.startswith("access-control")] == []


def test_with_keys_the_origin_does_not_matter_and_no_site_is_let_in_by_cors() -> None:
    """A proxy before this server may change Host; a page elsewhere has no key, and may not read what it gets."""
    fakes = Fakes(api_keys=KEYS)
    origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert fakes.chat(headers=origin).status_code == 401
    assert fakes.chat(headers=origin | bearer(ALICE)).status_code == 200
    preflight = get(fakes, "/v1/chat/completions", "OPTIONS", origin | bearer(ALICE))
    assert preflight.status_code == 405
    assert [name for name in preflight.headers if name.startswith("access-control")] == []


# Bodies --------------------------------------------------------------------------------------------------------------

LIMIT = 1024
SMALL = {"max_body_mib": LIMIT / 2**20}


def body_of(num_bytes: int) -> bytes:
    """A chat of exactly so many bytes."""
    start, end = b'{"model":"firewall","messages":[{"role":"user","content":"', b'"}]}'
    return start + b"x" * (num_bytes - len(start) - len(end)) + end


@pytest.mark.parametrize(("num_bytes", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (17 * 2**20, 413)])
@pytest.mark.parametrize("chunk", [None, 1000])
def test_a_body_may_be_as_large_as_the_limit_declared_or_chunked(num_bytes: int, status: int, chunk: int | None) -> None:
    fakes = Fakes(**SMALL)
    content = body_of(num_bytes)
    assert len(content) == num_bytes

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, num_bytes, chunk or num_bytes):
            yield content[start : start + (chunk or num_bytes)]

    async def send() -> httpx.Response:
        async with fakes.client() as client:
            return await client.post("/v1/chat/completions", content=content if chunk is None else chunks())

    response = asyncio.run(send())
    assert response.status_code == status
    if status == 413:
        assert error_of(response)["code"] == "body_too_large"
        assert fakes.weak.bodies == []
        assert fakes.chat().status_code == 200
    else:
        assert fakes.weak.bodies == [content]


def test_a_declared_length_that_is_too_large_is_refused_before_a_byte_is_read() -> None:
    response = asyncio.run(asked(Fakes(**SMALL), [], {"content-length": str(LIMIT + 1)}))
    assert response[0]["status"] == 413


@pytest.mark.parametrize("length", ["0", "1", "-5", "x", "", "9" * 5000, "1, 2", "٣"])
def test_a_length_that_lies_does_not_help(length: str) -> None:
    """uvicorn refuses most of these itself."""
    messages = [{"type": "http.request", "body": b"x" * LIMIT, "more_body": True}, {"type": "http.request", "body": b"x"}]
    response = asyncio.run(asked(Fakes(**SMALL), messages, {"content-length": length}))
    assert response[0]["status"] == 413


def test_a_client_that_leaves_in_its_body_asks_nothing_of_the_models() -> None:
    fakes = Fakes()
    messages = [{"type": "http.request", "body": GOOD, "more_body": True}, {"type": "http.disconnect"}]
    response = asyncio.run(asked(fakes, messages, {"content-length": "100"}))
    assert response[0]["status"] == 400  # nobody receives it
    assert fakes.router.calls == []


async def asked(fakes: Fakes, messages: list[Message], headers: dict[str, str]) -> list[Message]:
    """What the application sends to a POST whose body is these messages, and not one more."""
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/route",
        "raw_path": b"/v1/route",
        "query_string": b"",
        "headers": raw,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("gateway", 80),
        "client": ("client", 1),
    }
    await fakes.app(scope, receive, send)
    return sent
