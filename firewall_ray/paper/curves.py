"""Our own cost-quality curves, which the paper does not have and which therefore bear no number of its figures.

* `curves_baselines_<task>`: ours against the baselines (Table 1);
* `curves_labels_<task>`: the label designs (Table 3);
* `curves_pairs_<task>`: the other model pairs, a panel each (Table 2).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from firewall_ray.config.run import PaperConfig
from firewall_ray.evaluation.plots import STYLE, cost_quality
from firewall_ray.paper.tables import ALL, baselines_of, ours
from firewall_ray.schemas import LABEL_DESIGNS

Report = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """name: of its file, without the ending. figure: None where it is left out, and the caption says why."""

    name: str
    caption: str
    figure: Figure | None


def draw_curves(report: Report, pairs: Mapping[str, Report], config: PaperConfig) -> list[Drawing]:
    """report: of the trained pair; pairs: of the others, by name."""
    # matplotlib takes colours and fonts when a line or text is made, so the generators must run in here.
    with mpl.rc_context(STYLE):
        return [*_by_task(report, config), *_other_pairs(pairs, config)]


def _by_task(report: Report, config: PaperConfig) -> Iterator[Drawing]:
    compared = [*ours(report, config), *baselines_of(report)]
    designs = [design for design in LABEL_DESIGNS if design in report["bins"]]
    for name, routers, what in (("baselines", compared, "ours against the baselines"), ("labels", designs, "the label designs")):
        for task in report["settings"]["tasks"]:
            caption = f"Cost and quality on {task}: {what}. The band is the interval of the best."
            yield Drawing(f"curves_{name}_{task}", caption, _curves({task: _only(report, routers)}, task))


def _other_pairs(pairs: Mapping[str, Report], config: PaperConfig) -> Iterator[Drawing]:
    if not pairs:
        return
    # Pairs are labels of the same queries, and so have the same tasks.
    for task in next(iter(pairs.values()))["settings"]["tasks"]:
        panels = {name: _only(report, [*ours(report, config), *baselines_of(report)]) for name, report in pairs.items()}
        caption = f"Cost and quality on {task} of other model pairs, no retraining."
        yield Drawing(f"curves_pairs_{task}", caption, _curves(panels, task))


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
