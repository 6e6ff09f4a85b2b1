"""benchmarks/slow_s3.py as pyarrow's own S3 client sees it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest
from pyarrow import fs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slow_s3() -> Iterator[int]:
    """Its port."""
    with subprocess.Popen([sys.executable, "benchmarks/slow_s3.py", "20"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def test_the_slow_s3_does_what_pyarrow_asks_counts_it_and_takes_its_time(slow_s3: int) -> None:
    options = f"endpoint_override=127.0.0.1:{slow_s3}&scheme=http&region=us-east-1"
    filesystem, base = fs.FileSystem.from_uri(f"s3://a:b@bench/run?{options}")
    names = ["a & b.parquet", "deep/x.parquet", "deep/y.parquet", "_checkpoint/done.parquet", "_MANIFEST.json"]
    for name in names:
        with filesystem.open_output_stream(f"{base}/{name}") as stream:
            stream.write(name.encode() * 1_000)
    with filesystem.open_input_file(f"{base}/deep/x.parquet") as file:
        assert file.read_at(14, 14) == b"deep/x.parquet"

    found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    assert sorted(info.path.removeprefix(f"{base}/") for info in found if info.type == fs.FileType.File) == sorted(names)
    shallow = filesystem.get_file_info(fs.FileSelector(base))
    assert {info.base_name for info in shallow if info.type == fs.FileType.Directory} == {"deep", "_checkpoint"}

    filesystem.move(f"{base}/deep/x.parquet", f"{base}/moved.parquet")
    filesystem.delete_dir(f"{base}/deep")
    assert filesystem.get_file_info(f"{base}/deep/y.parquet").type == fs.FileType.NotFound
    with filesystem.open_input_stream(f"{base}/moved.parquet") as stream:
        assert stream.readall() == b"deep/x.parquet" * 1_000

    started = time.monotonic()
    filesystem.get_file_info(f"{base}/moved.parquet")
    assert time.monotonic() - started >= 0.02
    with urlopen(f"http://127.0.0.1:{slow_s3}/-/counts") as answer:
        counts = json.load(answer)
    # three files and the copy; two reads, of the moved one and before of x
    assert (counts["written data"], counts["written checkpoint"], counts["GET data"]) == (4, 1, 2)


def test_a_listing_of_more_than_a_page_is_whole(slow_s3: int) -> None:
    connection = HTTPConnection("127.0.0.1", slow_s3)
    names = [f"{folder}/{number:04}.parquet" for folder in ("a", "b") for number in range(60)]
    for name in names:
        connection.request("PUT", f"/bench/run/{name}", b"x")
        connection.getresponse().read()
    # Pages of seven keys: no folder comes twice or is lost where a page ends in the middle of it.
    for delimiter, expected in (("", 120), ("/", 2)):
        token, keys = "", 0
        while True:
            query = f"list-type=2&prefix=run/&delimiter={delimiter}&max-keys=7&continuation-token={token}"
            connection.request("GET", f"/bench?{query}")
            text = connection.getresponse().read().decode()
            keys += text.count("<Key>") + text.count("<CommonPrefixes>")
            if "<IsTruncated>true" not in text:
                break
            token = text.partition("<NextContinuationToken>")[2].partition("<")[0]
        assert keys == expected
