"""Server-sent events, however the network cuts them."""

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from serve_app.models.event_stream import event_data


async def _of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])).map(str.strip), max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 7),
)
def test_events_are_the_same_however_the_network_cuts_them(texts: list[str], end: str, size: int) -> None:
    stream = "".join(f": comment{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()

    async def read() -> list[bytes]:
        return [data async for data in event_data(_of(*(stream[i : i + size] for i in range(0, len(stream), size))))]

    # bytes.strip knows ASCII's blanks alone
    assert asyncio.run(read()) == [data for text in texts if (data := text.encode().strip())]


def test_what_only_keeps_a_connection_awake_is_passed_over() -> None:
    stream = b'data:\n\ndata: \n\nevent: ping\ndata: {"type": "ping"}\n\nevent: x\ndata: 1\n\nevent: ping\n\n: x\n\ndata: 2\n\n'

    async def read() -> list[bytes]:
        return [data async for data in event_data(_of(stream))]

    assert asyncio.run(read()) == [b"1", b"2"]


def test_a_last_event_without_a_line_end_counts() -> None:
    async def read() -> list[bytes]:
        return [data async for data in event_data(_of(b"data: 1\n\nda", b"ta: [DONE]"))]

    assert asyncio.run(read()) == [b"1", b"[DONE]"]
