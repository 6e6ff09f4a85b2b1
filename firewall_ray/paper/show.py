"""The plan and the claims in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from firewall_ray.paper.dry_run import Finding
from firewall_ray.paper.plan import Plan


def print_plan(plan: Plan, console: Console) -> None:
    """The rows, then how each came about, then memory and assumptions."""
    table = Table(title=Text("What the run costs"), title_justify="left", box=box.SIMPLE_HEAD)
    compared, price = plan.compared(), plan.price()
    columns = ["stage", "queries", "generations", "tokens", "on", "hours", "wall hours"]
    columns += ["money"] if price is not None else []
    columns += ["measured", "planned / measured"] if compared is not None else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "on") else "right", overflow="fold")
    for row in plan.rows:
        counts = [_count(number) for number in (row.queries, row.generations, row.tokens)]
        money = [] if price is None else [_money(row.price)]
        seconds = [] if compared is None else [_seconds(row.measured_s), "" if row.ratio is None else f"{row.ratio:.2f}"]
        hours = _hours(row.device_hours), _hours(row.wall_hours)
        table.add_row(Text(row.stage), *counts, row.device, *hours, *money, *seconds)
    table.add_section()
    # A row of device "none" is a model that is bought: it has no hours.
    for device in sorted({row.device for row in plan.rows} & {"gpu", "cpu"}):
        money = [] if price is None else [_money(price if device == "gpu" else None)]
        table.add_row("in all", "", "", "", device, _hours(plan.device_hours(device)), "", *money)
    if compared is not None:
        planned, measured = compared
        money = [] if price is None else [""]
        table.add_row(
            "finished", "", "", "", "", "", _hours(planned / 3600), *money, _seconds(measured), f"{planned / measured:.2f}"
        )
    console.print(table)
    for title, lines in (
        ("Arithmetic", [f"{row.stage}: {row.arithmetic}" for row in plan.rows]),
        ("Memory", plan.memory),
        ("Assumptions", plan.assumptions),
    ):
        if lines:
            console.print(Text(title, style="bold"))
            for line in lines:
                console.print(Text(f"- {line}"), soft_wrap=True)


def print_checks(findings: Sequence[Finding], console: Console) -> None:
    """A line a check; what is wrong in red."""
    words = {"ok": "ok", "wrong": "wrong", "unknown": "cannot be known here"}
    styles = {"ok": "green", "wrong": "bold red", "unknown": "yellow"}
    for what, state, said in findings:
        console.print(Text.assemble((f"{words[state]:<20}", styles[state]), f"  {what}: {said}"), soft_wrap=True)


def print_claims(claims: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Each claim: its difference in points with the interval, whether it held, and the same difference in the paper's own rows."""
    table = Table(title=Text("The paper's claims (paired differences, points)"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("claim", "data set", "difference", "here", "paper"):
        table.add_column(column, justify="right" if column in ("difference", "paper") else "left", overflow="fold")
    for claim in claims:
        value, low, high = (_points(claim[key]) for key in ("value", "low", "high"))
        # Text: in a plain string rich takes [bold] for its markup.
        difference = Text("" if claim["value"] is None else f"{value} [{low}, {high}]")
        table.add_row(Text(claim["statement"]), claim["dataset"], difference, claim["verdict"], _points(claim["published"]))
    console.print(table)


def _count(number: float | None) -> str:
    """Exact below a million.

    >>> _count(105_600), _count(37_712_345.0)
    ('105,600', '37.7 M')
    """
    if number is None:
        return ""
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:,.1f} M"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.2f}"


def _points(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:+.1f}"


def _money(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.0f} s"
