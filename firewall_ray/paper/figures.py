"""Figures 3 to 18 by the paper's own numbers: `FIGURES` says which number shows which method on which pair and split.

Figures 1 and 2 are drawings of the method. 3 and 4 (appendix A) are about BARTScore; 5 to 18 (appendix B) show what a method's
ranking is worth: the queries in its order, cut into bins of equal count, and the models' pass rates in each. A number always means
the same figure. What a run has nothing to draw of is left out, and the page says why.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from firewall_ray.config.base import PairConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.plots import STRONG, STYLE, WEAK, pass_rate_bars
from firewall_ray.paper.bart_accuracy import bin_by_bart_score, why_missing
from firewall_ray.paper.binned import Bin, bin_router
from firewall_ray.paper.curves import Drawing
from firewall_ray.paper.measured import Setting
from firewall_ray.paper.rows import FIRST, METHODS, SECOND, heading
from firewall_ray.paper.variants import MARGIN_SAMPLING, pair_name
from firewall_ray.store.layout import ArtifactStore

BART_SCORE = "bart_score"
Split = Literal["test", "train"]


class Entry(NamedTuple):
    """A figure of the paper. method: one of `rows.METHODS`, whose scores rank the queries, or BART_SCORE. pair: FIRST or SECOND."""

    number: int
    method: str
    pair: str = FIRST
    split: Split = "test"


FIGURES = (
    Entry(3, BART_SCORE, split="test"),
    Entry(4, BART_SCORE, split="train"),
    Entry(5, "Hybrid LLM"),
    Entry(6, "Hybrid LLM", SECOND),
    Entry(7, "RouteLLM (MF)"),
    Entry(8, "RouteLLM (MF)", SECOND),
    Entry(9, "Margin Sampling"),
    Entry(10, "Margin Sampling", SECOND),
    Entry(11, "Hard Block"),
    Entry(12, "Hard Block", SECOND),
    Entry(13, "Soft Block"),
    Entry(14, "Soft Block", SECOND),
    Entry(15, "Weak Model Pass Rate"),
    Entry(16, "Strong Model Pass Rate"),
    Entry(17, "Hard Label"),
    Entry(18, "Hard Blocking w/o SMS"),
)
Panels = dict[str, list[Bin]]  # task -> bins


@dataclass(frozen=True)
class FigureNumbers:
    """What the figures show. rows: by number, rows of panels: one a model in figures 3 and 4, else one, by the pair's name.

    missing: why the figure of a number has nothing to show, as a sentence's end.
    """

    rows: dict[int, dict[str, Panels]]
    missing: dict[int, str]


# Numbers -------------------------------------------------------------------------------------------------------------


def figure_numbers(config: RunConfig, store: ArtifactStore, settings: Mapping[str, Setting]) -> FigureNumbers:
    """Of all of FIGURES. settings: labelled test queries and router scores, by FIRST and SECOND, of the pairs that there are."""
    found = FigureNumbers({}, {})
    for entry in FIGURES:
        of_entry = _of_responses if entry.method == BART_SCORE else _of_queries
        rows = of_entry(entry, config, store, settings)
        if isinstance(rows, str):
            found.missing[entry.number] = rows
        else:
            found.rows[entry.number] = rows
    return found


def _of_responses(entry: Entry, config: RunConfig, store: ArtifactStore, _: Mapping[str, Setting]) -> dict[str, Panels] | str:
    """Figures 3 and 4: the rows, or why there are none."""
    if why := why_missing(store, config.pair, entry.split):
        return why
    rows = bin_by_bart_score(config, store, entry.split)
    return rows if all(rows.values()) else f"no labelled query of the {entry.split} split has BARTScores"


def _of_queries(entry: Entry, config: RunConfig, _: ArtifactStore, settings: Mapping[str, Setting]) -> dict[str, Panels] | str:
    """Figures 5 to 18: the rows, or why there are none."""
    if entry.pair not in settings:
        return "paper.pairs names no second pair"
    name = pair_name(_pair_of(entry, config))
    setting = settings[entry.pair]
    for router in METHODS[entry.method]:
        if router in setting.routers:
            return {name: bin_router(setting.queries, setting.routers[router], config.evaluation)}
    wanted = METHODS[entry.method][0]
    place = f"pairs/{name}/scores" if (wanted, entry.pair) == (MARGIN_SAMPLING, SECOND) else "scores"
    return f"there is no {place}/{wanted}/ (router.designs and baselines.names say what is trained and scored)"


# Drawing -------------------------------------------------------------------------------------------------------------


def draw_figures(numbers: FigureNumbers, config: RunConfig) -> list[Drawing]:
    """One for each of FIGURES, in their order."""
    # matplotlib takes colours and fonts when a line or text is made, so the figures must be made in here.
    with mpl.rc_context(STYLE):
        return [_draw(entry, numbers, config) for entry in FIGURES]


def _draw(entry: Entry, numbers: FigureNumbers, config: RunConfig) -> Drawing:
    of_responses = entry.method == BART_SCORE
    slug = re.sub(r"[^a-z0-9]+", "_", f"{entry.method} {entry.split if of_responses else entry.pair.split()[0]}".lower())
    name = f"figure_{entry.number:02d}_{slug}"
    title = f"Figure {entry.number}. {_title(entry)}."
    if entry.number in numbers.missing:
        return Drawing(name, f"{title} Left out: {numbers.missing[entry.number]}.", None)
    caption = _caption_of_responses(entry, config) if of_responses else _caption_of_queries(entry, config)
    return Drawing(name, f"{title} {caption}", _panels(numbers.rows[entry.number], config, of_responses=of_responses))


def _title(entry: Entry) -> str:
    if entry.method == BART_SCORE:
        return f"BARTScore and accuracy of both models' responses, {entry.split} split"
    return f"{entry.method}, {entry.pair}"


def _caption_of_responses(entry: Entry, config: RunConfig) -> str:
    return (
        f"Sampled responses to at most {config.paper.bart_score_queries:,} {entry.split} queries of each task, from the lowest "
        f"BARTScore to the highest, in {config.evaluation.num_bins} bins of equal count; on the axis the BARTScore where one bin "
        "ends and the next begins. A bar is the share of a bin's responses that are right: bars that rise speak for BARTScore."
    )


def _caption_of_queries(entry: Entry, config: RunConfig) -> str:
    caption = (
        f"{pair_name(_pair_of(entry, config))}, test queries of each task in the order in which they go to the strong model, in "
        f"{config.evaluation.num_bins} bins of equal count. Bars: mean pass rate of the weak and of the strong model, and the gain "
        "of sending the bin to the strong one. A useful order has the gain on the left."
    )
    if entry.pair == FIRST:
        return caption
    same = "The margins are those of this pair's weak model."
    return f"{caption} {same if entry.method == MARGIN_SAMPLING else f'The scores are those of figure {entry.number - 1}.'}"


def _pair_of(entry: Entry, config: RunConfig) -> PairConfig:
    return config.pair if entry.pair == FIRST else config.paper.pairs[0]


def _panels(rows: Mapping[str, Panels], config: RunConfig, *, of_responses: bool) -> Figure:
    """A column a task and, where there are several, a row a model."""
    titles = {task: heading(dataset, config) for dataset, task in config.paper.datasets.items()}
    found = {task for panels in rows.values() for task in panels}
    # In the paper's order; other tasks follow by name.
    tasks = [*(task for task in titles if task in found), *sorted(found - titles.keys())]
    figure = Figure(figsize=(4.6 * len(tasks), 3.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(tasks), squeeze=False)
    for (name, panels), axes_of_row in zip(rows.items(), grid, strict=True):
        for task, axes in zip(tasks, axes_of_row, strict=True):
            title = titles.get(task, task)
            axes.set_title(f"{title}, {name}" if of_responses else title)
            if of_responses:
                _accuracy_bars(axes, panels[task], WEAK if name == config.pair.weak else STRONG)
            else:
                # Places in the ranking, so bins of equal count are of equal width.
                edges = np.cumsum([0, *(each["num_queries"] for each in panels[task])])
                pass_rate_bars(axes, panels[task], edges / edges[-1], "share of the ranking (the number of queries above)")
                axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _accuracy_bars(axes: Axes, bins: list[Bin], colour: str) -> None:
    axes.bar(np.arange(len(bins)) + 0.5, [found["accuracy"] for found in bins], 0.8, color=colour)
    edges = [bins[0]["low"], *(found["high"] for found in bins)]
    axes.set_xticks(range(len(edges)), [f"{edge:.1f}" for edge in edges], fontsize=8)
    axes.set(xlim=(0, len(bins)), ylim=(0, 1), xlabel="BARTScore at the edges of the bins", ylabel="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="x")
