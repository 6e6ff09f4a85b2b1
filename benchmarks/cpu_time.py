"""CPU seconds of the processes of a local Ray, by what they do. Unlike wall clock it hardly depends on what else a machine does."""

import re

import psutil

REPLICA = re.compile(r"ray::ServeReplica:(.+?)(?:\.\w+)?$")
# Beside Ray: see serving_peers.py.
PEERS = {"vllm.entrypoints.openai.api_server": "vllm", "litellm": "litellm"}
OTHERS = {"ProxyActor": "proxy", "ServeController": "controller", "raylet": "raylet", "gcs_server": "gcs", "haproxy": "proxy"}


def cpu_seconds() -> dict[str, float]:
    """User and system seconds so far of this process' descendants. Replicas are named application:deployment, and their engines'
    processes application:deployment engine. Processes of no known kind are left out, the load generator among them.
    """
    seconds: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = _kind(process)
            times = process.cpu_times()
        except psutil.Error:  # ended meanwhile
            continue
        if name is not None:
            seconds[name] = seconds.get(name, 0.0) + times.user + times.system
    return seconds


def _kind(process: psutil.Process) -> str | None:
    title = " ".join(process.cmdline()).strip()
    if found := REPLICA.match(title):
        return found.group(1)
    if title.startswith("VLLM::"):
        for parent in process.parents():
            title_of_parent = " ".join(parent.cmdline()).strip()
            if found := REPLICA.match(title_of_parent):
                return f"{found.group(1)} engine"
            if peer := _peer(title_of_parent):
                return f"{peer} engine"
    if peer := _peer(title):
        return peer
    return next((name for marker, name in OTHERS.items() if marker in title.split(" -")[0]), None)


def _peer(title: str) -> str | None:
    return next((name for marker, name in PEERS.items() if marker in title), None)
