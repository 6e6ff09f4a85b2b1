"""Figures 3 to 18, drawn from reports. With three tasks, as in the paper, there are 16 of them:

* 3 to 5: cost and quality on each task, ours against the baselines (Table 1);
* 6 to 8: cost and quality on each task, the seven label designs (Table 3);
* 9 to 11: cost and quality on each task, the other model pairs (Table 2);
* 12 to 18: for each label design, the models' pass rates in bins of the router's score, task by task (the paper's appendix B).

The numbers run on from 3, so a run with other tasks has another count. Which of the paper's figures shows what is not known
here beyond the binned ones; see docs/reproduction.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from firewall_ray.config.run import PaperConfig
from firewall_ray.evaluation.plots import STYLE, cost_quality, pass_rate_bars
from firewall_ray.paper.tables import ALL, baselines_of, ours
from firewall_ray.schemas import LABEL_DESIGNS

Report = dict[str, Any]
Bins = Mapping[str, Mapping[str, list[dict[str, Any]]]]  # label design -> task -> rows of `bins.binned`
# The paper's figures 1 and 2 are drawings of the method.
FIRST_NUMBER = 3


@dataclass(frozen=True)
class PaperFigure:
    number: int
    name: str
    caption: str
    figure: Figure

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return f"figure_{self.number:02d}_{self.name}"


def draw_figures(report: Report, pairs: Mapping[str, Report], bins: Bins, config: PaperConfig) -> list[PaperFigure]:
    """Every figure. report: of the trained pair; pairs: of the others, by name; bins: by label design and task."""
    # matplotlib takes colours and fonts when a line or text is made, so the generators must run in here.
    with mpl.rc_context(STYLE):
        drawn = [*_by_task(report, config), *_other_pairs(pairs, config), *_binned(bins)]
    return [PaperFigure(number, *parts) for number, parts in enumerate(drawn, start=FIRST_NUMBER)]


Drawn = tuple[str, str, Figure]  # name, caption, figure


def _by_task(report: Report, config: PaperConfig) -> Iterator[Drawn]:
    compared = [*ours(report, config), *baselines_of(report)]
    designs = [design for design in LABEL_DESIGNS if design in report["bins"]]
    for name, routers, what in (("baselines", compared, "ours against the baselines"), ("labels", designs, "the label designs")):
        for task in report["settings"]["tasks"]:
            figure = _curves({task: _only(report, routers)}, task)
            yield f"{name}_{task}", f"Cost and quality on {task}: {what}. The band is the interval of the best.", figure


def _other_pairs(pairs: Mapping[str, Report], config: PaperConfig) -> Iterator[Drawn]:
    if not pairs:
        return
    # Pairs are labels of the same queries, and so have the same tasks.
    for task in next(iter(pairs.values()))["settings"]["tasks"]:
        panels = {name: _only(report, [*ours(report, config), *baselines_of(report)]) for name, report in pairs.items()}
        yield f"pairs_{task}", f"Cost and quality on {task} of other model pairs, no retraining.", _curves(panels, task)


def _binned(bins: Bins) -> Iterator[Drawn]:
    for design, by_task in bins.items():
        figure = Figure(figsize=(4.6 * len(by_task), 3.7), layout="constrained")
        panels = figure.subplots(1, len(by_task), squeeze=False)[0]
        for axes, (task, rows) in zip(panels, by_task.items(), strict=True):
            pass_rate_bars(axes, rows)
            axes.set_title(task)
        caption = (
            f"{design}: pass rates and gain of the queries in bins of predicted p_weak. A useful router has the gain on the left."
        )
        yield f"bins_{design}", caption, figure


def _curves(panels: Mapping[str, Report], task: str) -> Figure:
    """Panels side by side, by their titles; one legend, of the first."""
    figure = Figure(figsize=(3.0 + 4.6 * len(panels), 4.6), layout="constrained")
    for axes, (title, report) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        cost_quality(axes, report, task if task in report["curves"] else ALL)  # a single task is not told apart from all
        axes.set_title(title)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _only(report: Report, routers: list[str]) -> Report:
    """The report with these routers alone; figures draw the routers of its bins."""
    # Colours go by this order, so the panels of a figure may share a legend.
    return {**report, "bins": {name: report["bins"][name] for name in routers}}
