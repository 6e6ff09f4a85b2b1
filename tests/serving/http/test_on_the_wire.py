"""Admission behind a real HTTP server, which is uvicorn as in Ray Serve: odd bytes, bodies that never end, clients that leave."""

import asyncio

import httpx
import openai
import pytest
from callers import ALICE, CHAT, KEYS, until
from gateway_fakes import Fakes
from wire import on_the_wire


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
        (raw(KEY_LINE, body=GOOD).replace(b"host: gateway", b"host: [::1"), 403),
        (
            raw(KEY_LINE, body=GOOD, path=b"/elsewhere").replace(b"host: gateway", b"host: [::1"),
            403,
        ),  # no host that could be allowed
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
