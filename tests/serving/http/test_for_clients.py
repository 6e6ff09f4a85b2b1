"""Small things that other programs expect of an endpoint: headers for proxies, HTTP/1.0, a slash too many, what there is."""

import asyncio
import re

import pytest
from callers import ALICE, CHAT, KEYS, bearer, get
from gateway_fakes import Fakes
from pydantic_core import to_json
from wire import on_the_wire

from serve_app.http.openapi import ENDPOINTS


def test_a_stream_tells_proxies_not_to_collect_it() -> None:
    response = Fakes().chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert "x-accel-buffering" not in Fakes().chat().headers


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_of_http_1_0_gets_no_chunks(streams: bool) -> None:
    body = to_json({**CHAT, "stream": streams})

    async def ask(port: int, version: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/chat/completions HTTP/%s\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (version, len(body)) + body)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        headers, _, content = answer.partition(b"\r\n\r\n")
        return headers.lower(), content

    async def check(port: int) -> None:
        headers, content = await ask(port, b"1.0")
        assert b"transfer-encoding" not in headers
        assert f"content-length: {len(content)}".encode() in headers
        expected, chunked = await ask(port, b"1.1")
        if streams:
            assert b"transfer-encoding: chunked" in expected
            pieces = re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n(?=[0-9a-f]+\r\n)", chunked, re.DOTALL)
            assert b"".join(pieces) == content
            assert content.endswith(b"data: [DONE]\n\n")
        else:
            assert chunked == content

    on_the_wire(Fakes(), check)


def test_a_slash_behind_models_is_no_name_of_a_model() -> None:
    fakes = Fakes()
    assert get(fakes, "/v1/models/").json() == get(fakes, "/v1/models").json()
    assert get(fakes, "/v1/models/small").json()["id"] == "small"
    assert get(fakes, "/v1/models/small/").status_code == 404


def test_the_document_names_every_endpoint_and_what_needs_no_key() -> None:
    fakes = Fakes(api_keys=KEYS)
    document = get(fakes, "/openapi.json").json()
    assert document["openapi"].startswith("3.")
    served = {route.path.replace("{model_id:path}", "{model}").replace(":path", "") for route in fakes.app.routes}  # type: ignore[attr-defined]
    assert document["paths"].keys() == served
    assert {path for path, *_ in ENDPOINTS} == served
    for path, operations in document["paths"].items():
        ((method, operation),) = operations.items()
        if method == "get":
            url = path.replace("{model}", "small")
            assert get(fakes, url).status_code == (200 if operation.get("security") == [] else 401)
            assert get(fakes, url, headers=bearer(ALICE)).status_code == 200
        else:
            assert fakes.post(path, {}).status_code == 401


def test_the_document_is_one_by_openapis_own_words() -> None:
    document = get(Fakes(), "/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"]["200"]["description"]
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            assert set(schema.get("required", [])) <= set(schema.get("properties", {}))


def test_the_docs_are_a_page_without_scripts_or_anything_from_elsewhere() -> None:
    response = get(Fakes(api_keys=KEYS), "/docs")
    assert response.status_code == 200
    assert "/v1/chat/completions" in response.text
    assert "<script" not in response.text
    assert "http" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
