"""Server-sent events as OpenAI-compatible servers send them: one `data:` line an event. Runs on ingress replicas."""

from collections.abc import AsyncIterator

DONE = b"data: [DONE]\n\n"
# How a chat's event that only says who speaks shows; in a JSON string, as text is, the quotes would be escaped.
SPEAKER = b'"role":"assistant","content":""'


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


def num_tokens_in(chunk: bytes) -> int:
    """Of whole events, at one token an event. A server may send several in one, but hardly where it is read as fast as it writes.

    >>> num_tokens_in(b'data: {"choices":[{"text":"a"}]}\\n\\ndata: {"choices":[{"text":"b"}]}\\n\\ndata: [DONE]\\n\\n')
    2
    """
    return chunk.count(b"\n\n") - chunk.count(SPEAKER) - chunk.endswith(DONE)


def _data(line: bytes) -> bytes:
    return line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
