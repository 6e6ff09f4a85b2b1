"""Bodies as clients pack them: gzip, a byte order mark, numbers that are none."""

import gzip
import zlib
from functools import partial
from typing import Any

import pytest
from gateway_fakes import Fakes
from pydantic_core import to_json

from serve_app.body import BOM, parsed_object

CHAT: dict[str, Any] = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}]}
RAW = to_json(CHAT)
# Without the time, which would be in the tests' names: workers that start a second apart then collect other tests.
packed = partial(gzip.compress, mtime=0)


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (packed(RAW), "gzip"),
        (packed(RAW), "x-GZIP"),
        (packed(RAW[:9]) + packed(RAW[9:]), "gzip"),
        (packed(BOM + RAW), "gzip"),
        (RAW, "identity"),
        (BOM + RAW, ""),
    ],
)
def test_a_packed_body_is_the_body_to_everybody_behind(packed: bytes, encoding: str) -> None:
    fakes = Fakes()
    response = fakes.post("/v1/chat/completions", packed, {"content-encoding": encoding} if encoding else {})
    assert response.status_code == 200
    assert fakes.weak.bodies + fakes.strong.bodies == [RAW]


@pytest.mark.parametrize(
    ("packed", "encoding", "status", "code"),
    [
        (RAW, "br", 415, "unsupported_encoding"),
        (RAW, "zstd", 415, "unsupported_encoding"),
        (RAW, "gzip, gzip", 415, "unsupported_encoding"),
        (RAW, "gzip", 400, "invalid_encoding"),
        (packed(RAW)[:-9], "gzip", 400, "invalid_encoding"),
        (packed(RAW) + b"x", "gzip", 400, "invalid_encoding"),
        (zlib.compress(RAW), "gzip", 400, "invalid_encoding"),
        (packed(b" " * 2**20), "gzip", 413, "body_too_large"),
        (packed(b" " * 2**19) * 3, "gzip", 413, "body_too_large"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(packed: bytes, encoding: str, status: int, code: str) -> None:
    fakes = Fakes(max_body_mib=0.75)
    response = fakes.post("/v1/chat/completions", packed, {"content-encoding": encoding})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert fakes.refused == [status]
    assert fakes.weak.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": {"b": [1, "x", {"c": 1e400}]}}',
        b'{"a": [[[-1e400]]]}',
        b'{"a": [0, 0, 1.5, 1e400]}',
        b'{"messages": [{"role": "user", "content": "x", "weight": 1e999}]}',
    ],
)
def test_a_number_beyond_floating_point_is_refused_wherever_it_stands(body: bytes) -> None:
    """A server elsewhere would get `Infinity`, which is no JSON."""
    fakes = Fakes()
    for path in ("chat/completions", "completions", "route"):
        response = fakes.post(f"/v1/{path}", body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "json_invalid")


def test_numbers_that_are_large_are_numbers() -> None:
    assert parsed_object(b'{"a": [1e308, -1e308, {"b": 1e-400}]}') == {"a": [1e308, -1e308, {"b": 0.0}]}
