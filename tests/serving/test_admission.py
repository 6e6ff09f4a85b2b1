"""Who is let in, how much, and that places in flight come back. The wire itself is uvicorn's, as in Ray Serve."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from gateway_fakes import Fakes
from starlette.types import Message, Scope

from serve_app.admission import Admission
from serve_app.api_keys import make_key

ALICE, ALICE_CONFIG = make_key("alice")
BOB, BOB_CONFIG = make_key("bob")
KEYS = [ALICE_CONFIG.model_dump(), BOB_CONFIG.model_dump()]
CHAT = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def get(fakes: Fakes, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
    async def send() -> httpx.Response:
        async with fakes.client() as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


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


# In flight -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def hanging(fakes: Fakes, client: httpx.AsyncClient, keys: list[str]) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Chats that a model has and does not answer; cancelled at the end, as Ray Serve does when the client left."""
    fakes.weak.hangs = True
    tasks = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))) for key in keys]
    await until(lambda: fakes.weak.num_open == len(keys))
    fakes.weak.hangs = False
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def assert_too_many(response: httpx.Response, field: str) -> None:
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    error = error_of(response)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert field in error["message"]


def test_requests_beyond_max_in_flight_are_refused_whoever_asks_and_probes_are_not() -> None:
    async def check() -> None:
        fakes = Fakes(api_keys=KEYS, max_in_flight=2)
        async with fakes.client() as client:
            async with hanging(fakes, client, [ALICE, BOB]):
                for path in ("chat/completions", "completions", "route"):
                    response = await client.post(f"/v1/{path}", json=CHAT, headers=bearer(ALICE))
                    assert_too_many(response, "serving.max_in_flight)")
                assert (await client.post("/v1/route", json=CHAT)).status_code == 401  # first who, then how much
                for path in ("/health", "/ready", "/v1/models", "/stats"):
                    assert (await client.get(path, headers=bearer(ALICE))).status_code == 200
            assert (await client.post("/v1/route", json=CHAT, headers=bearer(ALICE))).status_code == 200
        assert fakes.refused == [429] * 3 + [401]

    asyncio.run(check())


def test_one_key_cannot_take_the_places_of_another() -> None:
    async def check() -> None:
        fakes = Fakes(api_keys=KEYS, max_in_flight=3, max_in_flight_per_key=2)
        async with fakes.client() as client:
            async with hanging(fakes, client, [ALICE, ALICE]):
                refused = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
                assert_too_many(refused, "serving.max_in_flight_per_key")
                assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(BOB))).status_code == 200
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))).status_code == 200

    asyncio.run(check())


def test_without_keys_only_the_whole_is_limited() -> None:
    async def check() -> None:
        fakes = Fakes(max_in_flight=2, max_in_flight_per_key=1)
        async with fakes.client() as client:
            async with hanging(fakes, client, ["a", "a"]):
                assert_too_many(await client.post("/v1/route", json=CHAT), "serving.max_in_flight)")

    asyncio.run(check())


def failing(fakes: Fakes) -> None:
    fakes.weak.why = fakes.strong.why = "dead"


def raising(fakes: Fakes) -> None:
    async def ask(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("unexpected")

    fakes.weak.ask = ask  # type: ignore[method-assign]


def breaking(fakes: Fakes) -> None:
    fakes.weak.breaks_after = 1


@pytest.mark.parametrize(
    ("prepare", "options", "status"),
    [
        (None, {}, 200),
        (None, {"stream": True}, 200),
        (None, {"model": "gpt-4"}, 404),
        (None, {"messages": 7}, 400),
        (failing, {}, 503),
        (raising, {}, 500),
        (breaking, {"stream": True}, 200),
    ],
)
def test_a_place_comes_back_whatever_became_of_the_request(
    prepare: Callable[[Fakes], None] | None, options: dict[str, Any], status: int
) -> None:
    fakes = Fakes(max_in_flight=1)
    if prepare is not None:
        prepare(fakes)
    for _ in range(3):
        assert fakes.post("/v1/chat/completions", {**CHAT, **options}).status_code == status


def test_refused_bodies_give_their_places_back() -> None:
    fakes = Fakes(max_in_flight=1, **SMALL)
    for _ in range(3):
        assert fakes.chat("x" * LIMIT).status_code == 413
    assert fakes.chat().status_code == 200


# On the wire ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(fakes: Fakes) -> AsyncIterator[int]:
    """The port of a uvicorn in front of the gateway."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(fakes.app, log_config=None, lifespan="off"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


def on_the_wire(fakes: Fakes, check: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        async with listening(fakes) as port:
            await check(port)

    asyncio.run(run())


async def status_of(port: int, request: bytes) -> int:
    """Of the answer to these bytes; the connection stays open until it comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(30):
        line = await reader.readline()
    writer.close()
    return int(line.split()[1])


def raw(*headers: bytes, body: bytes = b"", path: bytes = b"/v1/route") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: gateway", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


GOOD = b'{"prompt": "Why?"}'
KEY_LINE = f"authorization: Bearer {ALICE}".encode()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (raw(KEY_LINE, body=GOOD), 200),
        (raw(KEY_LINE.upper().replace(ALICE.upper().encode(), ALICE.encode()), body=GOOD), 200),
        (raw(KEY_LINE, KEY_LINE, body=GOOD), 401),
        (raw(b"authorization: Bearer x", KEY_LINE, body=GOOD), 401),
        (raw(KEY_LINE, b"authorization: ", body=GOOD), 401),
        (raw(b"authorization: Bearer \xff\xfe\xe9", body=GOOD), 401),
        (raw(b"authorization : Bearer x", body=GOOD), 400),
        (raw(KEY_LINE, b"content-length: 5", body=GOOD), 400),
        (raw(KEY_LINE, b"transfer-encoding: chunked", body=GOOD), 400),
        (raw(KEY_LINE, b"x-firewall-strong-fraction: \xff", body=GOOD), 400),
        (raw(KEY_LINE, b"x-firewall-strong-fraction: \xd9\xa3", body=GOOD), 400),
        (raw(KEY_LINE, b"x-firewall-conversation: \xff\xfe", body=GOOD), 200),
        (raw(KEY_LINE, body=GOOD).replace(b"host: gateway", b"host: [::1"), 200),
        (raw(KEY_LINE, body=GOOD, path=b"/elsewhere").replace(b"host: gateway", b"host: [::1"), 404),
        (raw(KEY_LINE, body=GOOD, path=b"/elsewhere?%ff"), 404),
        (raw(KEY_LINE, body=GOOD, path=b"/else\xffwhere"), 400),
        (raw(KEY_LINE, body=GOOD, path=b"/elsewhere?\xff"), 400),
        (raw(KEY_LINE, body=GOOD, path=b"/%ff%00%0a"), 404),
        (raw(KEY_LINE, body=GOOD, path=b"/health"), 405),
    ],
)
def test_odd_requests_are_answered_as_they_should(request_: bytes, status: int) -> None:
    fakes = Fakes(api_keys=KEYS, sticky=True)

    async def check(port: int) -> None:
        assert await status_of(port, request_) == status
        assert await status_of(port, raw(KEY_LINE, body=GOOD)) == 200

    on_the_wire(fakes, check)


@pytest.mark.parametrize("start", [raw(body=GOOD)[:-1], b"POST /v1/route HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"])
def test_a_body_that_never_ends_is_given_up_and_its_place_is_free_again(start: bytes) -> None:
    fakes = Fakes(max_in_flight=1, body_timeout_s=0.2)

    async def check(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        async with asyncio.timeout(30):
            answer = await reader.read()  # the server closes
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nconnection: close\r\n" in answer
        assert b'"code":"body_timeout"' in answer
        assert await status_of(port, raw(body=GOOD)) == 200
        writer.close()

    on_the_wire(fakes, check)
    assert fakes.refused == [408]


def test_a_client_that_leaves_a_stream_gives_its_place_back() -> None:
    fakes = Fakes(max_in_flight=1)
    fakes.weak.text = "word " * 1_000_000

    async def check(port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
                assert response.status_code == 200
                await anext(response.aiter_raw())
                assert (await client.post("/v1/route", json=CHAT)).status_code == 429
            await until(lambda: fakes.weak.num_open == 0)
            assert (await client.post("/v1/route", json=CHAT)).status_code == 200

    on_the_wire(fakes, check)


def test_the_official_client_understands_the_refusals() -> None:
    fakes = Fakes(api_keys=KEYS, max_in_flight=1, max_body_mib=1)

    async def check(port: int) -> None:
        def client(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

        async with client("fw-wrong") as stranger, client(ALICE) as alice:
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.models.list()
            assert refused.value.code == "invalid_api_key"
            assert [model.id async for model in await alice.models.list()] == ["firewall", "small", "large"]
            with pytest.raises(openai.APIStatusError) as too_large:
                await alice.completions.create(model="firewall", prompt="x" * 2**20)
            assert (too_large.value.status_code, too_large.value.code) == (413, "body_too_large")
            fakes.weak.hangs = True
            first = asyncio.create_task(alice.completions.create(model="firewall", prompt="x"))
            await until(lambda: fakes.weak.num_open == 1)
            with pytest.raises(openai.RateLimitError) as busy:
                await alice.completions.create(model="firewall", prompt="x")
            assert busy.value.response.headers["retry-after"] == "1"
            first.cancel()

    on_the_wire(fakes, check)
