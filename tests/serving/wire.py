"""The gateway behind a real HTTP server, which is uvicorn as in Ray Serve."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from callers import until
from gateway_fakes import Fakes


@asynccontextmanager
async def listening(fakes: Fakes) -> AsyncIterator[int]:
    """The port of a uvicorn in front of the gateway."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(fakes.app, log_config=None, lifespan="off"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


def on_the_wire(fakes: Fakes, check: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        async with listening(fakes) as port:
            await check(port)

    asyncio.run(run())
