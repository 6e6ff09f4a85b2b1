"""Controls in a report: what any router has to beat before it may be said to have read the queries.

A control has scores as a router has, from nearly nothing: the prompt's length, the task's name, labels that were shuffled. Reads
the report's own numbers; runs in the driver.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LENGTH, TASK, SHUFFLED = "control_length", "control_task", "control_shuffled"
# By the folder under scores/, which is reserved for it: in words, for sentences.
CONTROLS = {
    LENGTH: "the prompt's length alone",
    TASK: "the task's name alone",
    SHUFFLED: "the same encoder trained on shuffled labels",
}
Report = Mapping[str, Any]


def controls_on(report: Report, task: str) -> list[str]:
    """The controls that are measured on a task, in the order of CONTROLS."""
    return [name for name in CONTROLS if task in report["routers"].get(name, {})]


def is_beaten(difference: Mapping[str, Any]) -> bool:
    """Whether the interval of a router's APGR minus a control's lies above 0.

    >>> [is_beaten({"value": 0.1, "low": low, "high": 0.2}) for low in (0.01, 0.0, None)]
    [True, False, False]
    """
    return difference["low"] is not None and bool(difference["low"] > 0)


def unbeaten(report: Report, router: str, task: str = "all") -> dict[str, Mapping[str, Any]]:
    """The differences to the controls that a router does not beat on a task, by control; without those that have no value."""
    found = {control: of_task[task] for control, of_task in report["controls"].get(router, {}).items() if task in of_task}
    return {control: d for control, d in found.items() if d["value"] is not None and not is_beaten(d)}


def warnings_of(report: Report, routers: Sequence[str], task: str = "all") -> list[str]:
    """A sentence for each of the routers and each control that it does not beat on a task, or on all; none is good news."""
    return [
        f"{router} does not beat {CONTROLS[control]} on {task!r}: difference in APGR {difference_text(difference)}"
        for router in routers
        for control, difference in unbeaten(report, router, task).items()
    ]


def difference_text(difference: Mapping[str, Any]) -> str:
    """
    >>> difference_text({"value": 0.0123, "low": -0.02, "high": 0.045})
    '+0.012 [-0.020, +0.045]'
    >>> difference_text({"value": None, "low": None, "high": None})
    '– [–, –]'
    """
    value, low, high = ("–" if difference[key] is None else f"{difference[key]:+.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
