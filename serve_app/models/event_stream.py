"""Server-sent events as OpenAI-compatible servers send them: one `data:` line an event. Runs on ingress replicas."""

from collections.abc import AsyncIterator


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of one event after another. What only keeps a connection awake is skipped: comments, data without any, `ping`.

    A line ends at LF alone. httpx' own `aiter_lines` would also end it at U+2028 and the like, which JSON text may hold.
    """
    rest = name = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"event:"):
                name = line.removeprefix(b"event:").strip()
            elif not line.strip():  # the event's end
                name = b""
            elif name != b"ping" and (data := _data(line)):
                yield data
    if name != b"ping" and (data := _data(rest)):
        yield data


def _data(line: bytes) -> bytes:
    return line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
