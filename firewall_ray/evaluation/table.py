"""The report as a table in the terminal: what a pipeline run ends with. It fits 80 columns."""

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from firewall_ray.evaluation.controls import controls_on, warnings_of
from firewall_ray.store.dataset import Dataset

PERCENTS = (20, 50, 80)


def load_report(dataset: Dataset) -> dict[str, Any]:
    """The finished report.json. Raises ArtifactMissing when there is none."""
    loaded: dict[str, Any] = json.loads(dataset.require().read_bytes("report.json"))
    return loaded


def by_apgr(report: Mapping[str, Any], task: str) -> list[str]:
    """The routers measured on a task (baselines left out), best APGR first, undefined ones last."""
    measured = [name for name in report["bins"] if task in report["routers"][name]]

    def key(name: str) -> float:
        value = report["routers"][name][task]["apgr"]["value"]
        return float("inf") if value is None else -value

    return sorted(measured, key=key)


def print_table(report: Mapping[str, Any], console: Console, task: str = "all") -> None:
    """Router by router, best first: APGR with its interval, pass rate at 20/50/80% strong, CPT 20/50/80; baselines below,
    then the controls, and in words which of these a router does not beat, and the notices."""
    metrics_of = report["routers"]
    ranked = by_apgr(report, task)
    num_queries = metrics_of["oracle"][task]["num_queries"]
    table = Table(
        title=Text(f"{'All tasks' if task == 'all' else task}: {num_queries:,} test queries"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("router", overflow="fold")
    table.add_column(Text(f"APGR\n[{report['settings']['confidence']:.0%} interval]"), justify="right", no_wrap=True)
    table.add_column("pass rate, %\nat 20 / 50 / 80%", justify="right", no_wrap=True)
    table.add_column("CPT, %\n20 / 50 / 80", justify="right", no_wrap=True)

    def add(name: str, style: str = "") -> None:
        metrics = metrics_of[name][task]
        apgr = metrics["apgr"]
        interval = f"{number(apgr['value'])} [{number(apgr['low'])}, {number(apgr['high'])}]"
        rates = [metrics[f"pass_rate_{percent}"]["value"] for percent in PERCENTS]
        cpts = [metrics[f"cpt_{percent}"]["value"] for percent in PERCENTS]
        table.add_row(Text(name), Text(interval), _joined(rates, 1), _joined(cpts, 0), style=style)  # Text: names are no markup

    for i, name in enumerate(ranked):
        add(name, "bold" if i == 0 else "")
    table.add_section()
    for name in [name for name in ("random", "oracle") if name not in ranked]:
        add(name, "dim")
    for role in ("weak", "strong"):
        model = report["pair"][role]
        table.add_row(Text(f"always {model}"), "", _joined([report["models"][model][task]["pass_rate"]] * 3, 1), "", style="dim")
    table.add_section()
    for name in controls_on(report, task):
        add(name, "dim")
    console.print(table)
    for warning in warnings_of(report, ranked, task):
        console.print(Text(warning, style="yellow"))
    for notice in report["notices"]:
        console.print(Text(notice, style="yellow"))


def number(value: float | None, digits: int = 3) -> str:
    """'–' for what is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent_text(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _joined(rates: list[float | None], digits: int) -> str:
    return " / ".join(percent_text(rate, digits).removesuffix("%") for rate in rates)
