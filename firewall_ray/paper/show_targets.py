"""The paper's pass rates beside the measured ones in the terminal, of a run and of a calibration."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from firewall_ray.paper.calibration import Calibrated
from firewall_ray.paper.targets import Compared


def print_targets(rows: Sequence[Compared], console: Console) -> None:
    """Nothing where there are none, as in a run of other models."""
    if not rows:
        return
    table = Table(title=Text("Pass rate, percent: measured and the paper's"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "task", "measured", "standard error", "paper", "difference"):
        table.add_column(column, justify="left" if column in ("model", "task") else "right")
    for row in rows:
        numbers = [f"{100 * number:.2f}" for number in (row.measured, row.standard_error, row.target)]
        difference = Text(f"{100 * row.difference:+.2f}", style="" if row.is_near else "bold red")
        # Text: names may hold anything, and in a plain string rich takes [bold] for its markup.
        table.add_row(Text(row.model), Text(row.task), *numbers, difference)
    console.print(table)


def print_calibration(calibrated: Sequence[Calibrated], console: Console) -> None:
    """A line a setting, the nearest first; of each task the measured rate and how far it is."""
    first = calibrated[0].compared
    table = Table(title=Text(f"Settings of {first[0].model}, the nearest first"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("temperature", "trailing space", "stop strings", "GSM8K rule"):
        table.add_column(column)
    for row in first:
        table.add_column(Text(f"{row.task} ({100 * row.target:.2f})"), justify="right")
    table.add_column("mean distance", justify="right")
    for each in calibrated:
        setting = each.setting
        words = [f"{setting.temperature:g}", "kept" if setting.keeps_space else "dropped", "yes" if setting.has_stop else "none"]
        rates = [f"{100 * row.measured:.2f} ({100 * row.difference:+.2f})" for row in each.compared]
        table.add_row(*words, setting.rule, *rates, f"{100 * each.distance:.2f}")
    console.print(table)
    error = max(row.standard_error for row in first)
    console.print(
        f"Percent; the paper's in the head. {first[0].num_queries:,} queries of a task or fewer: a rate's standard error is up to "
        f"{100 * error:.1f} points, so settings that are nearer to each other than that cannot be told apart.",
        soft_wrap=True,
        highlight=False,
    )
