"""Closed-loop HTTP load: so many clients, each sending its next request when its last is answered. Runs in a process of its own.

aiohttp with kept-alive connections. `ceiling` says how many requests a second this load generator could send at most, so
that a figure near it is not taken for the server's.
"""

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import aiohttp


@dataclass(frozen=True)
class Load:
    """url: full. bodies: JSON, sent in turn. expected_headers: a response without one of them counts as a failure."""

    url: str
    bodies: Sequence[bytes]
    concurrency: int
    duration_s: float
    expected_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """latencies_ms, first_byte_ms: of each request that succeeded, from sending it to its last and first body byte."""

    latencies_ms: list[float]
    first_byte_ms: list[float]
    num_failures: int
    elapsed_s: float

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_ms) / self.elapsed_s


def load_process() -> ProcessPoolExecutor:
    """Where `run_load` belongs: `load_process().submit(run_load, load).result()`. Spawned, so that it shares nothing."""
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def run_load(load: Load) -> Measured:
    """Send until `duration_s` is over; requests in flight then are awaited and count."""
    return asyncio.run(_run(load))


def ceiling(concurrency: int, body: bytes, answer: bytes, duration_s: float = 2.0) -> float:
    """Requests/s against a server in this same process that does nothing but answer: what one core can do as both."""
    return asyncio.run(_ceiling(concurrency, body, answer, duration_s))


async def _run(load: Load) -> Measured:
    latencies_ms: list[float] = []
    first_byte_ms: list[float] = []
    num_failures = 0
    bodies = itertools.cycle(load.bodies)
    connector = aiohttp.TCPConnector(limit=load.concurrency)
    async with aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"}) as session:
        began = time.perf_counter()
        ends = began + load.duration_s

        async def client() -> None:
            nonlocal num_failures
            while (sent := time.perf_counter()) < ends:
                try:
                    async with session.post(load.url, data=next(bodies)) as response:
                        await response.content.readany()
                        first = time.perf_counter()
                        await response.read()
                    succeeded = response.status == 200 and _has(response.headers, load.expected_headers)
                except aiohttp.ClientError:
                    succeeded = False
                if succeeded:
                    first_byte_ms.append(1e3 * (first - sent))
                    latencies_ms.append(1e3 * (time.perf_counter() - sent))
                else:
                    num_failures += 1

        await asyncio.gather(*(client() for _ in range(load.concurrency)))
        return Measured(latencies_ms, first_byte_ms, num_failures, time.perf_counter() - began)


def _has(headers: Mapping[str, str], expected: Mapping[str, str]) -> bool:
    return all(headers.get(name) == value for name, value in expected.items())


async def _ceiling(concurrency: int, body: bytes, answer: bytes, duration_s: float) -> float:
    server = await asyncio.start_server(_answering(answer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        return (await _run(Load(f"http://127.0.0.1:{port}/", [body], concurrency, duration_s))).requests_per_s


def _answering(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    response = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                writer.write(response)
        except asyncio.IncompleteReadError:
            writer.close()

    return serve
