"""An S3 as far away as a real one: each request takes `--delay-ms`, those in flight together wait together; all are counted.

moto's server, which the tests use, needs 5 ms of CPU a request (this one 0.5) and would be what is measured. This one keeps
objects in memory and knows the calls that pyarrow's S3FileSystem makes: GetObject with a range, HeadObject, HeadBucket,
ListObjectsV2, PutObject, CopyObject, multipart uploads, DeleteObject and DeleteObjects. No signature is checked.

Runs in a process of its own (`running`); `SlowS3.counts` says what was asked of it since it began.
"""

import asyncio
import bisect
import hashlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape, unescape

import uvicorn

BUCKET = "bench"
COUNTS = "/-/counts"  # no bucket has such a name
PAGE = 1_000  # keys in one answer of ListObjectsV2, as on S3
BACKLOG = 1_024

Headers = list[tuple[bytes, bytes]]


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Headers = []  # noqa: RUF012


class Stored(NamedTuple):
    data: bytes
    etag: str
    modified: float


def kind_of(key: str) -> str:
    """data: a Parquet file of rows; checkpoint: a Parquet file that readers pass over, underscored; other: the rest."""
    if not key.endswith(".parquet"):
        return "other"
    return "checkpoint" if any(part.startswith(("_", ".")) for part in key.split("/")) else "data"


class Bucket:
    """Objects by key, and the answers to S3's calls. One bucket: its name is not looked at."""

    def __init__(self) -> None:
        self._objects: dict[str, Stored] = {}
        self._keys: list[str] = []  # sorted, for listings
        self._uploads: dict[str, dict[int, bytes]] = {}
        self.counts: Counter[str] = Counter()

    def answer(self, method: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Reply:
        if method == "GET" and not key:
            self.counts["LIST"] += 1
            return self._list(query)
        verb = "PUT" if method == "POST" else method
        if method == "POST" and "delete" in query:
            verb = "DELETE"
        self.counts[verb] += 1
        self.counts[f"{verb} {kind_of(key)}"] += 1
        if verb in ("GET", "HEAD"):
            return self._get(key, headers.get("range")) if key else Reply(200)
        if verb == "DELETE":
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode()) if method == "POST" else [key]
            for each in keys:
                self._delete(unescape(each, {"&quot;": '"'}) if method == "POST" else each)
            return Reply(200, _xml("DeleteResult")) if method == "POST" else Reply(204)
        return self._put(
            method, key, query, headers, _unchunked(body) if "aws-chunked" in headers.get("content-encoding", "") else body
        )

    def _get(self, key: str, wanted: str | None) -> Reply:
        if (there := self._objects.get(key)) is None:
            return Reply(404, _xml("Error", "<Code>NoSuchKey</Code>"))
        size = len(there.data)
        headers: Headers = [
            (b"etag", there.etag.encode()),
            (b"last-modified", formatdate(there.modified, usegmt=True).encode()),
            (b"accept-ranges", b"bytes"),
        ]
        if wanted is None:
            return Reply(200, there.data, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = (int(first), min(int(last or size), size - 1)) if first else (size - int(last), size - 1)
        headers.append((b"content-range", f"bytes {begin}-{end}/{size}".encode()))
        return Reply(206, there.data[begin : end + 1], headers)

    def _put(self, method: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Reply:
        if method == "POST" and "uploads" in query:
            upload = f"upload-{len(self._uploads)}-{time.monotonic_ns()}"
            self._uploads[upload] = {}
            return Reply(200, _xml("InitiateMultipartUploadResult", f"<Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"))
        if method == "POST":
            parts = self._uploads.pop(query["uploadId"])
            etag = self._store(key, b"".join(parts[number] for number in sorted(parts)))
            return Reply(200, _xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{etag}</ETag>"))
        if "partNumber" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            return Reply(200, headers=[(b"etag", _etag(body).encode())])
        if (source := headers.get("x-amz-copy-source")) is not None:
            there = self._objects.get(unquote(source).lstrip("/").partition("/")[2])
            if there is None:
                return Reply(404, _xml("Error", "<Code>NoSuchKey</Code>"))
            return Reply(200, _xml("CopyObjectResult", f"<ETag>{self._store(key, there.data)}</ETag>"))
        if key:  # else CreateBucket
            return Reply(200, headers=[(b"etag", self._store(key, body).encode())])
        return Reply(200)

    def _store(self, key: str, data: bytes) -> str:
        if key not in self._objects:
            bisect.insort(self._keys, key)
        if not key.endswith("/"):  # pyarrow's empty objects that stand for folders
            self.counts[f"written {kind_of(key)}"] += 1
        self._objects[key] = Stored(data, _etag(data), time.time())
        return self._objects[key].etag

    def _delete(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect.bisect_left(self._keys, key)]

    def _list(self, query: dict[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = int(query.get("max-keys", PAGE))
        # The token is the last key, or the last folder, of the page before.
        token = query.get("continuation-token") or query.get("start-after") or ""
        at = bisect.bisect_left(self._keys, prefix) if token < prefix else bisect.bisect_right(self._keys, _after(token))
        rows: list[str] = []
        last = ""
        while at < len(self._keys) and self._keys[at].startswith(prefix) and len(rows) < limit:
            key = self._keys[at]
            folder, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
            if found:
                last = f"{prefix}{folder}{delimiter}"
                rows.append(f"<CommonPrefixes><Prefix>{escape(last)}</Prefix></CommonPrefixes>")
                at = bisect.bisect_right(self._keys, _after(last))
                continue
            last, there = key, self._objects[key]
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(there.modified))
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified><ETag>{escape(there.etag)}</ETag>"
                f"<Size>{len(there.data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
            at += 1
        more = at < len(self._keys) and self._keys[at].startswith(prefix)
        rows.append(f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>")
        if more:
            rows.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
        return Reply(200, _xml("ListBucketResult", "".join(rows)), [(b"content-type", b"application/xml")])


def _after(token: str) -> str:
    """A string that no key under the folder `token`, or the key `token` itself, comes after."""
    return token + "\U0010ffff" if token.endswith("/") else token


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(name: str, content: str = "") -> bytes:
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{namespace}">{content}</{name}>'.encode()


def _unchunked(body: bytes) -> bytes:
    """AWS's own framing inside the body: a length in hex, perhaps a signature, the bytes; trailers after a length of 0."""
    parts, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


class SlowServer:
    """The bucket as an ASGI application."""

    def __init__(self, delay_s: float) -> None:
        self._bucket = Bucket()
        self._delay_s = delay_s

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        arrived = asyncio.get_running_loop().time()
        body, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body.append(message.get("body", b""))
            more = message.get("more_body", False)
        if scope["path"] == COUNTS:
            reply = Reply(200, json.dumps(self._bucket.counts).encode())
        else:
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            bucket, _, key = scope["path"].lstrip("/").partition("/")
            query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
            # From its arrival, so that what this process needs itself is part of the delay as long as it is idle enough.
            await asyncio.sleep(arrived + self._delay_s - asyncio.get_running_loop().time())
            # pyarrow asks for a bucket that is nowhere, to see what kind of S3 this is.
            known = bucket == BUCKET
            reply = self._bucket.answer(scope["method"], key, query, headers, b"".join(body)) if known else Reply(404)
        headers_out = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers_out})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


class SlowS3(NamedTuple):
    port: int

    @property
    def root(self) -> str:
        """The keys travel in the URI, as for workers that have no environment of their own."""
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://testing:testing@{BUCKET}/run?{options}"

    def counts(self) -> Counter[str]:
        """Since the server began: requests by verb ("GET"), by verb and kind of object ("GET data"), objects written by kind."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{COUNTS}") as answer:
            return Counter(json.load(answer))


@contextmanager
def running(delay_ms: float) -> Iterator[SlowS3]:
    """The server, in a process of its own, until the body ends."""
    with subprocess.Popen([sys.executable, __file__, str(delay_ms)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield SlowS3(int(process.stdout.readline()))
        finally:
            process.terminate()


def main(delay_ms: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    # uvicorn sends a head and its body apart: without this, the second waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(listener.getsockname()[1], flush=True)
    # Idle connections are kept: a client that loses one asks again, and is counted twice.
    options = uvicorn.Config(SlowServer(delay_ms / 1_000), log_level="warning", access_log=False, timeout_keep_alive=3_600)
    asyncio.run(uvicorn.Server(options).serve(sockets=[listener]))


if __name__ == "__main__":
    main(float(sys.argv[1]))
