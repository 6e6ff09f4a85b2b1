"""python -m serve_app: where it listens, and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from callers import KEYS
from openai_server import MODEL, event, events, openai_server
from ray_head import free_port
from running_app import wait_until
from servable_run import models_elsewhere, write_run
from starlette.responses import Response

from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ConfigError
from firewall_ray.store.layout import ArtifactStore
from serve_app.__main__ import check_host

NUM_WORDS = 12


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "node-1"])
def test_without_keys_it_does_not_listen_to_the_network(host: str) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        check_host(host, ServingConfig(api_keys="disabled"))
    check_host(host, ServingConfig.model_validate({"api_keys": KEYS}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_keys_it_listens_to_this_machine(host: str) -> None:
    check_host(host, ServingConfig(api_keys="disabled"))


async def slow_words(body: dict[str, Any]) -> Response:
    """A stream of six seconds: longer than Serve takes to stop a replica that has nothing to do."""

    async def chunks() -> AsyncIterator[bytes]:
        for i in range(NUM_WORDS):
            yield event(choices=[{"index": 0, "delta": {"content": f"{i} "}}])
            await asyncio.sleep(0.5)
        yield b"data: [DONE]\n\n"

    return events(chunks())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_told_to_stop_it_ends_the_answers_under_way_writes_what_it_decided_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    """SIGINT is ignored when it begins, as of what a script starts in the background."""
    config_path = Path(write_run(tmp_path))
    raw = yaml.safe_load(config_path.read_text())
    port, shared_memory = free_port(), set(os.listdir("/dev/shm"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with openai_server() as server:
        server.answer = slow_words
        raw["models"] = models_elsewhere(server.url, model=MODEL)
        raw["serving"] |= {"other_models": "warn", "decision_log": {"seconds_per_file": 3_600}}
        config_path.write_text(yaml.safe_dump(raw))
        served = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "--config", str(config_path), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        assert served.stdout is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(served.stdout or ()), daemon=True)
        reader.start()
        try:
            wait_until(lambda: served.poll() is not None or any("serve: up" in line for line in said), "it was up", 180)
            assert served.poll() is None, "".join(said)
            body = {"model": "firewall", "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "stream": True}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                lines = response.iter_lines()
                first = next(lines)
                served.send_signal(number)
                answer = [first, *lines]
            assert sum("content" in line for line in answer) == NUM_WORDS
            assert "data: [DONE]" in answer
            assert served.wait(60) == 0
        finally:
            served.kill()
        reader.join(10)
    output = "".join(said)
    assert "serve: stopping" in output
    assert not any(word in output for word in ("Traceback", "Stack trace", "*** ", "SIGTERM received")), output
    rows = ArtifactStore(str(tmp_path)).decisions().read().to_pylist()
    assert [(row["status"], row["streams"]) for row in rows] == [(200, True)]
    assert set(os.listdir("/dev/shm")) <= shared_memory
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
