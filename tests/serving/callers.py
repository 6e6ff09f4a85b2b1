"""Two callers with a key each, what they send and what they should get back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from gateway_fakes import Fakes

from serve_app.api_keys import make_key

ALICE, ALICE_CONFIG = make_key("alice")
BOB, BOB_CONFIG = make_key("bob")
KEYS = [ALICE_CONFIG.model_dump(), BOB_CONFIG.model_dump()]
CHAT = {"model": "firewall", "messages": [{"role": "user", "content": "Why?"}]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def get(fakes: Fakes, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
    async def send() -> httpx.Response:
        async with fakes.client() as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def hanging(fakes: Fakes, client: httpx.AsyncClient, keys: list[str]) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Chats that a model has and does not answer; cancelled at the end, as Ray Serve does when the client left."""
    fakes.weak.hangs = True
    tasks = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))) for key in keys]
    await until(lambda: fakes.weak.num_open == len(keys))
    fakes.weak.hangs = False
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
