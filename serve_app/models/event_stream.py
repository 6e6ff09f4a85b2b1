"""Server-sent events as OpenAI-compatible servers send them: one `data:` line an event. Runs on ingress replicas."""

from collections.abc import AsyncIterator


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of one event after another. Comments, by which servers keep a connection awake, and other fields are skipped.

    A line ends at LF alone. httpx' own `aiter_lines` would also end it at U+2028 and the like, which JSON text may hold.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
    if rest.startswith(b"data:"):
        yield rest.removeprefix(b"data:").strip()
