"""The report as a table in the terminal: what a pipeline run ends with."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from firewall_ray.evaluation.plots import by_apgr


def print_table(report: Mapping[str, Any], console: Console, task: str = "all") -> None:
    """Router by router, best first: APGR with its interval, pass rate at 20/50/80% strong, CPT 20/50/80; baselines below."""
    confidence = report["settings"]["confidence"]
    table = Table(title=f"{_title(task)}: {report['settings']['num_queries']:,} test queries", title_justify="left")
    table.add_column("router", overflow="fold")
    table.add_column(f"APGR [{confidence:.0%} interval]".replace("[", r"\["), justify="right", no_wrap=True)
    for percent in (20, 50, 80):
        table.add_column(f"pass rate\nat {percent}%", justify="right")
    table.add_column("CPT 20/50/80", justify="right", no_wrap=True)
    ranked = by_apgr(dict(report), task)
    for name in ranked:
        _add_row(table, name, report["routers"][name][task])
    table.add_section()
    for name in [name for name in ("random", "oracle") if name not in ranked]:
        _add_row(table, name, report["routers"][name][task])
    for role in ("weak", "strong"):
        model = report["pair"][role]
        rate = percent_text(report["models"][model][task]["pass_rate"])
        table.add_row(f"always {model}", "", rate, rate, rate, "")
    console.print(table)


def _add_row(table: Table, name: str, metrics: Mapping[str, Any]) -> None:
    apgr = metrics["apgr"]
    interval = rf"{number(apgr['value'])} \[{number(apgr['low'])}, {number(apgr['high'])}]"
    rates = [percent_text(metrics[f"pass_rate_{percent}"]["value"]) for percent in (20, 50, 80)]
    cpt = " / ".join(percent_text(metrics[f"cpt_{percent}"]["value"], digits=0) for percent in (20, 50, 80))
    table.add_row(name, interval, *rates, cpt)


def number(value: float | None, digits: int = 3) -> str:
    """'–' for what is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent_text(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _title(task: str) -> str:
    return "All tasks" if task == "all" else task
