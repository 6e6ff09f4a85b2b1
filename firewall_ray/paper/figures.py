"""Figures 3 to 18 by the paper's own numbers: `FIGURES` says which number shows which method on which pair and split.

Figures 1 and 2 are drawings of the method. 3 and 4 (appendix A) are about BARTScore; 5 to 18 (appendix B) show what a method's
ranking is worth: the queries in its order, cut into bins of equal count, and the models' pass rates in each. A number always means
the same figure. What a run has nothing to draw of is left out, and the page says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from firewall_ray.baselines.run import describe
from firewall_ray.config.base import PairConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.inputs import LabelledQueries, RouterScores
from firewall_ray.evaluation.plots import STRONG, STYLE, WEAK, pass_rate_bars
from firewall_ray.paper.bart_accuracy import bin_by_bart_score, why_missing
from firewall_ray.paper.binned import Bin, bin_router
from firewall_ray.paper.curves import Drawing
from firewall_ray.paper.variants import MARGIN_SAMPLING, pair_name
from firewall_ray.store.layout import ArtifactStore

BART_SCORE = "bart_score"
Pair = Literal["first", "second"]  # the pair that routers are trained on, and the first of `paper.pairs`
Split = Literal["test", "train"]


class Entry(NamedTuple):
    """A figure of the paper. method: the router whose scores rank the queries, or BART_SCORE."""

    number: int
    method: str
    pair: Pair = "first"
    split: Split = "test"


FIGURES = (
    Entry(3, BART_SCORE, split="test"),
    Entry(4, BART_SCORE, split="train"),
    # The paper's Hybrid LLM learns from win rates of "a biased comparison", which is the transformed label.
    Entry(5, "hybrid_llm_trans", "first"),
    Entry(6, "hybrid_llm_trans", "second"),
    Entry(7, "routellm_mf", "first"),
    Entry(8, "routellm_mf", "second"),
    Entry(9, MARGIN_SAMPLING, "first"),
    Entry(10, MARGIN_SAMPLING, "second"),
    Entry(11, "hard_block", "first"),
    Entry(12, "hard_block", "second"),
    Entry(13, "soft_block", "first"),
    Entry(14, "soft_block", "second"),
    Entry(15, "weak_pass_rate"),
    Entry(16, "strong_pass_rate"),
    Entry(17, "hard_label"),
    Entry(18, "hard_block_greedy"),
)
# Baselines have their titles in `describe`, which also says what stands in for a model.
TITLES = {
    "hard_block": "Hard Blocking",
    "soft_block": "Soft Blocking",
    "weak_pass_rate": "The weak model's pass rate as label",
    "strong_pass_rate": "The strong model's pass rate as label",
    "hard_label": "Hard label of the greedy answers",
    "hard_block_greedy": "Hard Blocking without sampling of the strong model",
}
# Panels in the paper's order, the miniature's parts in the places of what they stand for; other tasks follow by name.
DATASETS = ("triviaqa", "tiny_facts", "gsm8k", "tiny_sums", "humaneval", "tiny_letters")
DATASET_TITLES = {"triviaqa": "TriviaQA", "gsm8k": "GSM8K", "humaneval": "HumanEval"}

Panels = dict[str, list[Bin]]  # task -> bins
Scored = tuple[LabelledQueries, Sequence[RouterScores]]


@dataclass(frozen=True)
class FigureNumbers:
    """What the figures show. rows: by number, rows of panels: one a model in figures 3 and 4, else one, by the pair's name.

    missing: why the figure of a number has nothing to show, as a sentence's end.
    """

    rows: dict[int, dict[str, Panels]]
    missing: dict[int, str]


# Numbers -------------------------------------------------------------------------------------------------------------


def figure_numbers(config: RunConfig, store: ArtifactStore, scored: Mapping[Pair, Scored]) -> FigureNumbers:
    """Of all of FIGURES. scored: labelled test queries and router scores of the pairs that there are."""
    found = FigureNumbers({}, {})
    for entry in FIGURES:
        of_entry = _of_responses if entry.method == BART_SCORE else _of_queries
        rows = of_entry(entry, config, store, scored)
        if isinstance(rows, str):
            found.missing[entry.number] = rows
        else:
            found.rows[entry.number] = rows
    return found


def _of_responses(entry: Entry, config: RunConfig, store: ArtifactStore, _: Mapping[Pair, Scored]) -> dict[str, Panels] | str:
    """Figures 3 and 4: the rows, or why there are none."""
    if why := why_missing(store, config.pair, entry.split):
        return why
    rows = bin_by_bart_score(config, store, entry.split)
    return rows if all(rows.values()) else f"no labelled query of the {entry.split} split has BARTScores"


def _of_queries(entry: Entry, config: RunConfig, _: ArtifactStore, scored: Mapping[Pair, Scored]) -> dict[str, Panels] | str:
    """Figures 5 to 18: the rows, or why there are none."""
    if entry.pair not in scored:
        return "paper.pairs names no second pair"
    name = pair_name(_pair_of(entry, config))
    queries, routers = scored[entry.pair]
    router = next((router for router in routers if router.name == entry.method), None)
    if router is None:
        place = f"pairs/{name}/scores" if (entry.method, entry.pair) == (MARGIN_SAMPLING, "second") else "scores"
        return f"there is no {place}/{entry.method}/ (router.designs and baselines.names say what is trained and scored)"
    return {name: bin_router(queries, router, config.evaluation)}


# Drawing -------------------------------------------------------------------------------------------------------------


def draw_figures(numbers: FigureNumbers, config: RunConfig) -> list[Drawing]:
    """One for each of FIGURES, in their order."""
    # matplotlib takes colours and fonts when a line or text is made, so the figures must be made in here.
    with mpl.rc_context(STYLE):
        return [_draw(entry, numbers, config) for entry in FIGURES]


def _draw(entry: Entry, numbers: FigureNumbers, config: RunConfig) -> Drawing:
    of_responses = entry.method == BART_SCORE
    name = f"figure_{entry.number:02d}_{entry.method}_{entry.split if of_responses else entry.pair}"
    title = f"Figure {entry.number}. {_title(entry, config)}."
    if entry.number in numbers.missing:
        return Drawing(name, f"{title} Left out: {numbers.missing[entry.number]}.", None)
    caption = _caption_of_responses(entry, config) if of_responses else _caption_of_queries(entry, config)
    return Drawing(name, f"{title} {caption}", _panels(numbers.rows[entry.number], config.pair.weak, of_responses=of_responses))


def _title(entry: Entry, config: RunConfig) -> str:
    if entry.method == BART_SCORE:
        return f"BARTScore and accuracy of both models' responses, {entry.split} split"
    return f"{TITLES.get(entry.method) or describe(entry.method, config)}, {entry.pair} pair"


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
    if entry.pair == "first":
        return caption
    same = "The margins are those of this pair's weak model."
    return f"{caption} {same if entry.method == MARGIN_SAMPLING else f'The scores are those of figure {entry.number - 1}.'}"


def _pair_of(entry: Entry, config: RunConfig) -> PairConfig:
    return config.pair if entry.pair == "first" else config.paper.pairs[0]


def _panels(rows: Mapping[str, Panels], weak: str, *, of_responses: bool) -> Figure:
    """A column a task and, where there are several, a row a model."""
    tasks = sorted({task for panels in rows.values() for task in panels}, key=_place)
    figure = Figure(figsize=(4.6 * len(tasks), 3.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(tasks), squeeze=False)
    for (name, panels), axes_of_row in zip(rows.items(), grid, strict=True):
        for task, axes in zip(tasks, axes_of_row, strict=True):
            title = DATASET_TITLES.get(task, task)
            axes.set_title(f"{title}, {name}" if of_responses else title)
            if of_responses:
                _accuracy_bars(axes, panels[task], WEAK if name == weak else STRONG)
            else:
                # Places in the ranking, so bins of equal count are of equal width.
                edges = np.cumsum([0, *(found["num_queries"] for found in panels[task])])
                pass_rate_bars(axes, panels[task], edges / edges[-1], "share of the ranking (the number of queries above)")
                axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _place(task: str) -> tuple[int, str]:
    return (DATASETS.index(task) if task in DATASETS else len(DATASETS), task)


def _accuracy_bars(axes: Axes, bins: list[Bin], colour: str) -> None:
    axes.bar(np.arange(len(bins)) + 0.5, [found["accuracy"] for found in bins], 0.8, color=colour)
    edges = [bins[0]["low"], *(found["high"] for found in bins)]
    axes.set_xticks(range(len(edges)), [f"{edge:.1f}" for edge in edges], fontsize=8)
    axes.set(xlim=(0, len(bins)), ylim=(0, 1), xlabel="BARTScore at the edges of the bins", ylabel="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="x")
