"""Whether the nodes that will grade can run generated programs, asked before sampling begins: not after hours of it.

Runs in the driver; on each node a task runs one program. Grading is spread over every node with CPUs, so each of them is asked.
Nodes that an autoscaler starts later are not there to be asked.
"""

import logging
from collections.abc import Mapping

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from firewall_ray.config.queries import SandboxConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import SandboxUnavailable
from firewall_ray.sandbox.program import PASSED, Limits
from firewall_ray.sandbox.sandbox import Sandbox

WAIT_S = 120.0  # a node that starts its first worker needs some ten seconds

logger = logging.getLogger("firewall_ray")


def sandboxes(config: RunConfig) -> Mapping[str, SandboxConfig]:
    """By its section, the sandbox of every task whose grader runs programs; empty where none does."""
    tasks = config.queries.tasks
    if tasks is None:
        return {}
    of_humaneval = {"grading.humaneval": config.grading.humaneval} if tasks.humaneval is not None else {}
    own = {f"queries.tasks.custom.{name}.sandbox": task.sandbox for name, task in tasks.custom.items() if task.grader == "code"}
    return {**of_humaneval, **own}


def refusal(sandbox: SandboxConfig) -> str | None:
    """Why this machine cannot run programs so; None where it can."""
    with Sandbox(Limits(sandbox.timeout_s, sandbox.memory_mib, sandbox.scratch_mib), sandbox.isolation) as started:
        try:
            outcome = started.run("x = 1")
        except SandboxUnavailable as e:
            return str(e)
    return None if outcome == PASSED else f"a program of one line did not pass in it: {outcome}."


def check_sandboxes(config: RunConfig) -> None:
    """Raises SandboxUnavailable naming the section, the node and the way out, for the first node with CPUs that refuses."""
    wanted = sandboxes(config)
    if not wanted:
        return
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0}
    # No CPU: other jobs may hold all of them, and the question takes a moment.
    ask = ray.remote(num_cpus=0, max_retries=0)(refusal)
    for section, sandbox in wanted.items():
        asked = {
            node_id: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(sandbox)
            for node_id in nodes
        }
        for node_id, answer in asked.items():
            place = nodes[node_id].get("NodeManagerHostname") or node_id[:8]
            try:
                reason = ray.get(answer, timeout=WAIT_S)
            except RayError as e:  # the node went, or is too busy to answer: it says nothing about namespaces
                logger.warning("sandbox: node %s did not say whether it can run programs (%s)", place, type(e).__name__)
                continue
            if reason is not None:
                raise SandboxUnavailable(
                    f"{section}: grading has to run programs, on any of {len(nodes)} nodes with CPUs, and {place} refuses. {reason}"
                )
