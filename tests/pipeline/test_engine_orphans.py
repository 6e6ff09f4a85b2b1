"""What an engine leaves behind when its actor is killed: nothing that holds a GPU."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]

# The stand-in for vLLM where it is not needed: a child that never looks up, started by a thread that ends at once, as Ray's may.
PLAIN = """
import multiprocessing, sys, threading, time
from firewall_ray.engines.orphans import end_with_parent

def child():
    end_with_parent()
    print("ready", flush=True)
    while True:
        time.sleep(0.001)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    time.sleep(600)
"""

VLLM = """
import os, time
from firewall_ray.config.models import VllmModelConfig
from firewall_ray.engines import vllm
from firewall_ray.engines.report import EngineReport

if __name__ == "__main__":
    # Two GPUs are what makes `start_engine` leave vLLM's core in a child; on this machine it then gets one CPU.
    config = VllmModelConfig(path="quickstart/models/weak", device="cpu", dtype="float32", max_model_len=64, tensor_parallel_size=2)
    arguments = {**vllm.engine_args(config, 0), "tensor_parallel_size": 1, "distributed_executor_backend": "uni"}
    vllm.engine_args = lambda config, seed: arguments
    engine = vllm.start_engine(config, 0, EngineReport("weak", None))
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def started(script: str, folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", list[psutil.Process]]]:
    """The script as a process that is ready, and its children. All of them are gone afterwards."""
    path = folder / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(path), *arguments]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    children: list[psutil.Process] = []
    try:
        assert parent.stdout is not None
        assert any(line.strip() == "ready" for line in parent.stdout), "it ended before it was ready"
        children = psutil.Process(parent.pid).children(recursive=True)
        yield parent, children
    finally:
        parent.kill()
        parent.wait()
        for child in children:
            if child.is_running():
                child.kill()


def left_after(children: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    return psutil.wait_procs(children, timeout=seconds)[1]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_child_is_gone_soon_after_its_parent_and_not_before(tmp_path: Path, method: str) -> None:
    with started(PLAIN, tmp_path, method) as (parent, children):
        time.sleep(3)  # the thread that started it is gone by now
        assert children
        assert all(child.is_running() for child in children)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert left_after(children, 30) == []


@pytest.mark.slow
def test_the_core_of_a_killed_engine_over_several_gpus_is_gone_within_seconds(tmp_path: Path) -> None:
    with started(VLLM, tmp_path) as (parent, children):
        assert any(child.memory_info().rss > 2**28 for child in children)  # vLLM's core with its weights, not a helper of Python's
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert left_after(children, 30) == []
