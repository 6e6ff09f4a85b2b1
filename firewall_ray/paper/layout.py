"""Tables 1 to 4 as the paper lays them out: its methods as rows in its order, its data sets as columns, ours and then its own."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.metrics import METRICS
from firewall_ray.paper.measured import Measured
from firewall_ray.paper.published import published, same_setting
from firewall_ray.paper.rows import ROWS, SECOND, heading
from firewall_ray.paper.table import Cell, Row, Table
from firewall_ray.paper.variants import pair_name

# The paper's APGR is the plain mean of the 11 points: its printed pass rates fit that one (tests/unit/paper/test_published.py).
METRIC_OF = {"APGR": "apgr_mean", "20%": "pass_rate_20", "50%": "pass_rate_50", "80%": "pass_rate_80"}
TITLES = {
    "table_1": "Table 1: routing methods",
    "table_2": "Table 2: another weak model, no retraining",
    "table_3": "Table 3: label designs",
    "table_4": "Table 4: router backbones",
}
MEANING = (
    "In percent. APGR: plain mean of PGR at 0, 10, ..., 100% strong calls, as in the paper; 20, 50, 80%: mean pass rate with so "
    "many strong calls. Bold: the best of a column. Empty: not measured in this run."
)


def ours(table: str, measured: Measured, config: RunConfig) -> Table:
    """Of this run. Every row and column of the paper has its place, measured or not."""
    paper = published()
    rows = []
    for method in paper.rows[table]:
        cells = []
        for dataset in paper.datasets:
            curve = measured.get((table, method, dataset))
            for column in paper.columns_of(table):
                value = float(METRICS[METRIC_OF[column]](curve.curve)) if curve else float("nan")
                cells.append(Cell(None if np.isnan(value) else value, digits=2))
        rows.append(((method,), tuple(cells)))
    setting = pair_name(config.pair)
    if any(row.setting == SECOND for row in ROWS[table].values()) and config.paper.pairs:
        setting = f"{pair_name(config.paper.pairs[0])}, routers of {setting}"
    return _laid_out(table, table, f"{TITLES[table]} ({setting})", rows, (MEANING, *_stand_ins(table, measured)), config)


def theirs(table: str, config: RunConfig) -> Table:
    """The paper's own numbers in the same shape."""
    rows = [
        ((method,), tuple(Cell(value / 100, digits=2) for value in values)) for method, values in published().rows[table].items()
    ]
    note = "Peng et al., EMNLP 2025, as printed. "
    note += "This run has the paper's setting." if same_setting(config) else "This run's models or settings are others."
    return _laid_out(table, f"{table}_published", f"{TITLES[table].partition(':')[0]} of the paper", rows, (note,), None)


def side_by_side(ours: Table, theirs: Table) -> str:
    """CSV: both tables below one another, in percent, with whose row it is; empty where nothing was measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["source", *theirs.keys, *theirs.columns])
    for source, table in (("this run", ours), ("paper", theirs)):
        for texts, cells in table.rows:
            # Ten digits: percent of a float is no longer its shortest text.
            writer.writerow([source, *texts, *("" if cell.value is None else f"{100 * cell.value:.10g}" for cell in cells)])
    return buffer.getvalue()


def _laid_out(table: str, name: str, title: str, rows: Sequence[Row], notes: tuple[str, ...], config: RunConfig | None) -> Table:
    paper = published()
    columns = paper.columns_of(table)
    return Table(
        name=name,
        title=title,
        keys=("Method",),
        columns=tuple(f"{dataset} {column}" for dataset in paper.datasets for column in columns),
        rows=tuple(rows),
        notes=notes,
        best=best_cells(rows),
        groups=tuple((heading(dataset, config) if config else dataset, len(columns)) for dataset in paper.datasets),
    )


def best_cells(rows: Sequence[Row]) -> frozenset[tuple[int, int]]:
    """(row, column) of the highest value of each column, and of those that are printed like it."""
    # (num_rows, num_columns), as printed.
    shown = np.array([[np.nan if cell.value is None else round(100 * cell.value, 2) for cell in cells] for _, cells in rows])
    return frozenset(
        (row, column)
        for column in range(shown.shape[1])
        if not np.isnan(shown[:, column]).all()
        for row in np.flatnonzero(shown[:, column] == np.nanmax(shown[:, column])).tolist()
    )


def _stand_ins(table: str, measured: Measured) -> list[str]:
    """Which of several routers stands for a row."""
    said = []
    for method, row in ROWS[table].items():
        routers = {curve.router for (of, name, _), curve in measured.items() if (of, name) == (table, method)}
        if len(row.routers) > 1 and routers:
            said.append(f"{method}: {', '.join(sorted(routers))}.")
    return said
