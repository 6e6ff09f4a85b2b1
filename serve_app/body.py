"""A request's body: unpacked, and read as JSON. Runs in the ingress."""

import math
import zlib
from typing import Any

from pydantic_core import from_json

from serve_app.errors import RequestRefused

BOM = b"\xef\xbb\xbf"
GZIP = 16 + zlib.MAX_WBITS  # zlib's word for gzip's frame
_NO_FLOATS = frozenset({str, int, bool, type(None)})


def unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body as it was before its client packed it. encoding: the header `content-encoding`, empty where there is none.

    Raises RequestRefused: 415 of an encoding other than gzip, 413 beyond max_bytes, of which no more are ever unpacked.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise RequestRefused(415, "content-encoding: only gzip, or none.", code="unsupported_encoding", param="content-encoding")
    plain = bytearray()
    try:
        while body:  # of several members, which gzip allows
            member = zlib.decompressobj(GZIP)
            plain += member.decompress(body, max_bytes + 1 - len(plain))
            if len(plain) > max_bytes:
                raise RequestRefused(413, "The body is too large once it is unpacked.", code="body_too_large")
            if not member.eof:
                raise zlib.error("cut off")
            body = member.unused_data
    except zlib.error as e:
        raise RequestRefused(400, "The body is not gzip, as its content-encoding says.", code="invalid_encoding") from e
    return bytes(plain)


def parsed_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises RequestRefused."""
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise RequestRefused(400, f"The body is not JSON: {e}.", code="json_invalid") from e
    if not isinstance(parsed, dict):
        raise RequestRefused(400, "The body must be a JSON object.", code="invalid_type")
    if _has_infinity(parsed):  # as 1e400 is read
        raise RequestRefused(400, "The body has a number beyond the range of floating point.", code="json_invalid")
    return parsed


def _has_infinity(parsed: dict[str, Any]) -> bool:
    """At any depth: it would leave for a server elsewhere as `Infinity`, which is no JSON."""
    unseen: list[Any] = [parsed]
    while unseen:
        each = unseen.pop()
        values = each.values() if isinstance(each, dict) else each
        # Of a million token ids, none is looked at twice.
        if _NO_FLOATS.issuperset(map(type, values)):
            continue
        for value in values:
            if isinstance(value, float):
                if math.isinf(value):
                    return True
            elif isinstance(value, dict | list):
                unseen.append(value)
    return False


def wants_stream(parsed: dict[str, Any]) -> bool:
    """Raises RequestRefused on anything but true, false and null."""
    stream = parsed.get("stream")
    # Strictly, since the gateway reads a stream otherwise than a whole answer: were 1 or "true" let through, vLLM would take it for
    # true, and the two would read one body differently.
    if stream is not None and not isinstance(stream, bool):
        raise RequestRefused(400, "stream: must be true or false.", code="invalid_type", param="stream")
    return bool(stream)
