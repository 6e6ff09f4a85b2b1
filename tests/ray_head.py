"""A Ray head as an operator starts it, for what goes through its dashboard: `ray job submit`, `serve deploy`."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_head(*options: str) -> Iterator[dict[str, str]]:
    """`ray start --head` on ports of its own; the environment in which `ray job` and `serve` find it. options: more of them."""
    dashboard = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PATH": path, "RAY_AUTH_MODE": "token"}
    command = ["ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=8"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment["RAY_API_SERVER_ADDRESS"] = environment["RAY_DASHBOARD_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        yield environment
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:  # `ray stop` would end others' Ray too
            child.kill()
        process.wait(30)
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # it would send later drivers to the head that is gone
