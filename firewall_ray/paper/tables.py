"""What we add to the paper's tables, one table below each: intervals, task by task and on all of them; the models alone, the
oracle, further baselines, pairs and backbones; the trapezoid APGR, CPT and paired differences.

A report is what `stages/report.py` builds, the content of report.json, so every number comes with its interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from firewall_ray.config.base import BackboneConfig
from firewall_ray.config.run import PaperConfig
from firewall_ray.paper.table import Cell, Row, Table
from firewall_ray.schemas import LABEL_DESIGNS

Report = dict[str, Any]

COLUMNS = {
    "APGR (mean)": "apgr_mean",
    "PR@20%": "pass_rate_20",
    "PR@50%": "pass_rate_50",
    "PR@80%": "pass_rate_80",
    "CPT(20%)": "cpt_20",
    "CPT(50%)": "cpt_50",
    "CPT(80%)": "cpt_80",
    "APGR (trapezoid)": "apgr",
}
COMPARED = "apgr_mean"
ALL = "all"
LINEAR, ORACLE = "random (linear interpolation)", "oracle"
MEANING = (
    "In percent, test split; the best router of a group in bold. PR@x: mean pass rate with x of the queries sent to the strong "
    "model. CPT(x): smallest share of strong calls that recovers x of the gap between the models; empty where no share does. APGR: "
    "of the 11 points the plain mean, which is the paper's, and the trapezoid, which is RouteLLM's; random is 50 in both."
)
INTERVALS = (
    "In brackets: {confidence:.0%} bootstrap intervals over queries ({num_bootstrap:,} resamples). Differences are paired: router "
    "minus {reference}, on the same resamples."
)


def table_1(report: Report, config: PaperConfig, titles: Mapping[str, str]) -> Table:
    """Ours against the baselines, task by task: every router found under scores/ but the other label designs.

    titles: what each router is called, by its name in the report.
    """
    rows: list[Row] = []
    for task in tasks_of(report):
        named = _compared(report, config, task, titles)
        rows += [*_models(report, task), *_rows(report, task, {LINEAR: "random", **named, ORACLE: "oracle"}, (task,))]
    return _table("table_1_extended", "Table 1, extended: routers and baselines, by task", ("task", "router"), rows, report)


def table_2(reports: Mapping[str, Report], config: PaperConfig, titles: Mapping[str, str], *, trained_on: str) -> Table:
    """Other pairs, with routers that were trained on the run's own. reports: by the pair's name."""
    rows: list[Row] = []
    for pair, report in reports.items():
        for task in tasks_of(report):
            named = _compared(report, config, task, titles)
            rows += _rows(report, task, {LINEAR: "random", **named, ORACLE: "oracle"}, (pair, task))
    note = (
        f"All routers were trained on the pair {trained_on}. Margin Sampling, which is not trained, reads each pair's weak model."
    )
    first = next(iter(reports.values()))
    return _table(
        "table_2_extended", "Table 2, extended: other model pairs, no retraining", ("pair", "task", "router"), rows, first, note
    )


def table_3(report: Report) -> Table:
    """The label designs of Eq. 1 to 7, one router each."""
    rows: list[Row] = []
    for task in tasks_of(report):
        # In the order of the equations, those that were trained and have scored the task.
        designs = [design for design in LABEL_DESIGNS if task in report["routers"].get(design, {})]
        rows += _rows(report, task, {design: design for design in designs}, (task,))
    return _table("table_3_extended", "Table 3, extended: label designs", ("task", "label"), rows, report)


def table_4(reports: Mapping[str, Report]) -> Table:
    """Backbones. reports: by label design; the routers in each are named after their backbones, the run's own is reference."""
    rows: list[Row] = []
    for design, report in reports.items():
        for task in tasks_of(report):
            names = [name for name in report["bins"] if task in report["routers"][name]]
            rows += _rows(report, task, {name: name for name in names}, (design, task))
    first = next(iter(reports.values()))
    return _table("table_4_extended", "Table 4, extended: backbones", ("label", "task", "backbone"), rows, first)


# What is in a report -------------------------------------------------------------------------------------------------


def tasks_of(report: Report) -> list[str]:
    """The tasks, and `all` where there are several."""
    # Of a single task `all` would be a copy.
    tasks = list(report["settings"]["tasks"])
    return tasks if len(tasks) == 1 else [*tasks, ALL]


def ours(report: Report, config: PaperConfig) -> list[str]:
    return [name for name in config.routers if name in report["bins"]]


def baselines_of(report: Report) -> list[str]:
    """Routers that no label design of ours made."""
    return sorted(name for name in report["bins"] if name not in LABEL_DESIGNS)


def backbone_name(backbone: BackboneConfig) -> str:
    """What the tables call the run's own backbone.

    >>> backbone_name(BackboneConfig()), backbone_name(BackboneConfig(path=None, tokenizer="x"))
    ('deberta-v3-large', 'deberta (from scratch)')
    """
    return f"{backbone.architecture} (from scratch)" if backbone.path is None else backbone.path.rstrip("/").rpartition("/")[2]


def _compared(report: Report, config: PaperConfig, task: str, titles: Mapping[str, str]) -> dict[str, str]:
    """Title -> name of the baselines and ours, as far as they have scored the task."""
    names = [*baselines_of(report), *ours(report, config)]
    return {titles[name]: name for name in names if task in report["routers"][name]}


# Rows ----------------------------------------------------------------------------------------------------------------


def _rows(report: Report, task: str, routers: Mapping[str, str], keys: tuple[str, ...]) -> Iterator[Row]:
    """One row a router. routers: shown name -> name in the report."""
    for shown, name in routers.items():
        metrics = report["routers"][name][task]
        cells = tuple(Cell.of(metrics[metric]) for metric in COLUMNS.values())
        # None for the reference itself, and for random routing and the oracle, which are no routers to choose from.
        difference = report["comparisons"]["differences"].get(name, {}).get(task)
        yield (*keys, shown), (*cells, Cell.of(difference and difference[COMPARED], signed=True))


def _models(report: Report, task: str) -> Iterator[Row]:
    """The two models alone: the same pass rate at every strong fraction, and nothing to recover."""
    for role in ("weak", "strong"):
        found = report["models"][report["pair"][role]][task]
        rate, none = Cell(found["pass_rate"], found["low"], found["high"]), Cell(None)
        cells = (rate if metric.startswith("pass_rate") else none for metric in COLUMNS.values())
        yield (task, f"always {report['pair'][role]}"), (*cells, none)


def _table(name: str, title: str, keys: tuple[str, ...], rows: Iterable[Row], report: Report, *notes: str) -> Table:
    facts = {**report["settings"], "reference": report["comparisons"]["reference"]}
    made, said = tuple(rows), (MEANING, INTERVALS.format(**facts), *notes)
    return Table(name, title, keys, (*COLUMNS, "difference in APGR (mean)"), made, said, _best(made))


def _best(rows: Sequence[Row]) -> frozenset[tuple[int, int]]:
    """The highest APGR among the routers of each group, a group being rows that differ in their last text alone."""
    apgr = list(COLUMNS.values()).index(COMPARED)
    best: dict[tuple[str, ...], tuple[float, int]] = {}
    for number, (texts, cells) in enumerate(rows):
        value = cells[apgr].value
        # Bounds are not in the running.
        if value is not None and texts[-1] not in (LINEAR, ORACLE):
            best[texts[:-1]] = max(best.get(texts[:-1], (value, number)), (value, number))
    return frozenset((number, apgr) for _, number in best.values())
