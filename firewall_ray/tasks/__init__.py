"""The benchmarks, one file each. `get_task` finds one by the name it has in `queries.task`."""

import difflib

from firewall_ray.errors import TaskError
from firewall_ray.tasks.base import Query, Task
from firewall_ray.tasks.gsm8k import Gsm8k
from firewall_ray.tasks.humaneval import HumanEval
from firewall_ray.tasks.tiny_world import TinyWorld

__all__ = ["TASKS", "Query", "Task", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (TinyWorld(), Gsm8k(), HumanEval())}


def get_task(name: str) -> Task:
    """Raises TaskError naming the tasks that exist when there is none of this name."""
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise TaskError(f"There is no task {name!r}{hint} Tasks: {sorted(TASKS)}. A task is one file in firewall_ray/tasks/.")
    return TASKS[name]
