"""A Ray of several nodes on this machine, a real raylet each, of which a test kills some.

The test's own process never joins it: its drivers are processes of their own, as on a cluster.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from ray.cluster_utils import Cluster
from ray.core.generated.gcs_pb2 import ActorTableData
from ray_head import free_port

# A node is missed after three seconds, not fifteen as in production: what follows is the same, and tests take less time.
SYSTEM = {"health_check_period_ms": 1_000, "health_check_failure_threshold": 3}
HEAD = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True, "_system_config": SYSTEM}

Node = Any  # ray._private.node.Node


class Actor(NamedTuple):
    """As the head's table has it, which Ray's state API reads. state: ALIVE, RESTARTING, DEAD, ...; name: "" where it has none."""

    class_name: str
    name: str
    state: str
    node_id: str
    resources: dict[str, float]


class RayNodes:
    """The head runs drivers and no work, as in ray_cluster.yaml."""

    def __init__(self) -> None:
        # A port of its own even without a dashboard: a part of it runs all the same.
        self._cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "dashboard_port": free_port()})
        # Of this process like the nodes' own: where it has a Ray already, that one's token is the nodes' too.
        self.environment = {**os.environ, "RAY_ADDRESS": self.address}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, num_cpus: int, num_gpus: int = 0, **resources: float) -> Node:
        """A node; it is in the cluster when this returns. GPUs need not exist to be counted."""
        return self._cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus, resources=resources)

    def kill(self, node: Node) -> None:
        """As a machine that is switched off: the raylet first, so that it tells nobody, then all that ran there."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def actors(self, class_name: str) -> list[Actor]:
        """Those whose class has `class_name` in its name, dead ones too."""
        table = self._cluster.global_state._connect_and_get_accessor().get_actor_table(None, None)
        rows = [ActorTableData.FromString(row) for row in table]
        return [
            Actor(
                row.class_name,
                row.name,
                ActorTableData.ActorState.Name(row.state),
                row.address.node_id.hex(),
                dict(row.required_resources),
            )
            for row in rows
            if class_name in row.class_name
        ]

    def job(self, verb: str, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """`python jobs/<verb>.py`, what it says in `log`."""
        command = [sys.executable, f"jobs/{verb}.py", *arguments]
        with log.open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)

    def in_driver(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(address, *arguments)` in a fresh process, which may join as a driver; what it returns or raises."""
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(function, self.address, *arguments).result()

    def stop(self) -> None:
        children = [child for node in self._cluster.list_all_nodes() for child in _descendants(node)]
        self._cluster.shutdown()
        for child in children:  # an actor that did not see its raylet die
            if child.is_running():
                child.kill()
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # it would send later drivers to a head that is gone


def _descendants(node: Node) -> list[psutil.Process]:
    return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """Only the head at first."""
    nodes = RayNodes()
    try:
        yield nodes
    finally:
        nodes.stop()


def wait_for(condition: Callable[[], Any], what: str, running: "subprocess.Popen[bytes] | None" = None) -> Any:
    """The condition's first result that is true. Fails after four minutes, or when the job that should bring it about ends."""
    deadline = time.monotonic() + 240
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        assert running is None or running.poll() is None, f"the job ended before {what}"
        time.sleep(0.05)
    return result
