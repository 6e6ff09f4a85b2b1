"""A stream that has begun, held to its pace: how long it may be silent, and how long it may last. Runs on ingress replicas."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def in_time(parts: AsyncIterator[T], pause_s: float, total_s: float) -> AsyncIterator[T]:
    """The parts as they come. Raises TimeoutError after a silence of pause_s, and total_s after the first of them was asked for.

    What the reader takes for a part is no silence.
    """
    now = asyncio.get_running_loop().time
    end = now() + total_s
    while True:
        try:
            async with asyncio.timeout_at(min(end, now() + pause_s)):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        yield part
