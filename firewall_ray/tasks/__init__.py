"""The benchmarks, one file each. `get_task` finds one by the name it has in `queries.task`."""

import difflib
from collections.abc import Mapping

from firewall_ray.config.queries import CustomTaskOptions
from firewall_ray.errors import TaskError
from firewall_ray.tasks.base import Query, Task
from firewall_ray.tasks.custom import CustomTask
from firewall_ray.tasks.gsm8k import Gsm8k
from firewall_ray.tasks.humaneval import HumanEval
from firewall_ray.tasks.tiny_parts import PARTS, TinyPart
from firewall_ray.tasks.tiny_world import TinyWorld
from firewall_ray.tasks.triviaqa import TriviaQa

__all__ = ["TASKS", "Query", "Task", "get_task", "known_tasks"]

TASKS: dict[str, Task] = {task.name: task for task in (TinyWorld(), *map(TinyPart, PARTS), TriviaQa(), Gsm8k(), HumanEval())}


def known_tasks(custom: Mapping[str, CustomTaskOptions]) -> dict[str, Task]:
    """Every task of a run by its name: this package's, and those of the config's `queries.tasks.custom`."""
    # The config refuses a name of this package's for a task of the user's, so nothing is replaced.
    return {**TASKS, **{name: CustomTask(name, options) for name, options in custom.items()}}


def get_task(name: str, known: Mapping[str, Task] = TASKS) -> Task:
    """Raises TaskError naming the tasks that exist when there is none of this name."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise TaskError(
            f"There is no task {name!r}{hint} Tasks: {sorted(known)}. Your own are named in queries.tasks.custom, or are "
            "one file in firewall_ray/tasks/."
        )
    return known[name]
