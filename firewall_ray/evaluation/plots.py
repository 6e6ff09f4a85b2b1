"""The report's figures, from the numbers in report.json. matplotlib without pyplot: nothing global, no display needed.

Each figure is written twice: as PNG on white, and as SVG whose ink is the page's text colour, so that one drawing serves
the light and the dark page.
"""

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from firewall_ray.evaluation.table import by_apgr
from firewall_ray.schemas import VERDICTS

# Lower case, as matplotlib writes colours into an SVG; no other colour here may equal one of them.
INK, FAINT = "#1b1d21", "#d5d8dd"  # replaced in the SVG by the page's own colours
PALETTE = ("#2f7ed8", "#e07b39", "#1f9e89", "#c2508f", "#8a6fd1", "#a98f1f", "#d1495b", "#4f8a3c")
WEAK, STRONG, GAIN = "#8fa3b8", "#2f7ed8", "#1f9e89"
# Grey is what nobody could have got right; the two strong colours are no failure of the model's knowledge.
VERDICT_COLOURS = dict(zip(VERDICTS, ("#1f9e89", "#8fa3b8", "#e07b39", "#d1495b"), strict=True))
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "text.color": INK,
    "text.parse_math": False,  # a router's or task's name may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    # Text as text; the default draws each letter as a path. The salt gives elements the same ids in every run.
    "svg.fonttype": "none",
    "svg.hashsalt": "firewall-ray",
}
Report = dict[str, Any]


def draw(report: Report) -> dict[str, Figure]:
    """Every figure by file name: `cost_quality` (all tasks), `cost_quality_<task>` where there are several, `bins_<router>`,
    and `verdicts` where they are known."""
    with mpl.rc_context(STYLE):
        figures = {}
        for task in report["curves"]:
            figures["cost_quality" if task == "all" else f"cost_quality_{task}"] = _cost_quality(report, task)
        for router in report["bins"]:
            figures[f"bins_{router}"] = _bins(report, router)
        if "verdicts" in report:
            figures["verdicts"] = _verdicts(report)
        return figures


def png(figure: Figure) -> bytes:
    with mpl.rc_context(STYLE), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
        return buffer.getvalue()


def svg(figure: Figure) -> str:
    """An <svg> element to put into a page that defines `color` and `--faint`."""
    with mpl.rc_context(STYLE), io.StringIO() as buffer:
        # Date: left out, so that the same report is the same file.
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Without width and height the figure takes the page's width, and its height from viewBox.
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)


def _cost_quality(report: Report, task: str) -> Figure:
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    cost_quality(axes, report, task)
    axes.set_title(f"Cost and quality, {'all tasks' if task == 'all' else task}")
    figure.legend(loc="outside right center")
    return figure


def cost_quality(axes: Axes, report: Report, task: str) -> None:
    """Pass rate against strong fraction: every router, the interval of the best, random routing and the oracle."""
    curves = report["curves"][task]
    # By the router's place in the report, not in the ranking: a router has one colour in the figures of all tasks.
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(report["bins"])}
    ranked = by_apgr(report, task)
    if ranked:
        best = curves[ranked[0]]
        # Each (11,); None, undefined, becomes NaN.
        low, high = (np.array(best[key], dtype=float) for key in ("low", "high"))
        axes.fill_between(best["strong_fraction"], low, high, color=colours[ranked[0]], alpha=0.16, linewidth=0)
    for i, name in enumerate(ranked):
        axes.plot(
            curves[name]["strong_fraction"],
            _floats(curves[name]["pass_rate"]),
            color=colours[name],
            label=f" {name}",  # a label that starts with an underscore would be left out
            linewidth=2.2 if i == 0 else 1.6,
            zorder=3 if i == 0 else 2,
            marker="o",
            markersize=3,
        )
    for name, line in (("oracle", ":"), ("random", "--")):
        if name in curves and name not in ranked:
            axes.plot(
                curves[name]["strong_fraction"], _floats(curves[name]["pass_rate"]), line, color=INK, linewidth=1.3, label=name
            )
    for role in ("weak", "strong"):
        model = report["pair"][role]
        axes.axhline(report["models"][model][task]["pass_rate"], color=INK, linewidth=0.8, alpha=0.45, zorder=1)
        # Where no curve meets the line: all begin on the weak model's, on the left, and end on the strong one's.
        end, align = (0.995, "right") if role == "weak" else (0.005, "left")
        axes.annotate(
            f"always {model}",
            (end, report["models"][model][task]["pass_rate"]),
            xytext=(0, 3),
            textcoords="offset points",
            ha=align,
            fontsize=9,
        )
    axes.set(xlim=(0, 1), xlabel="strong fraction (share of queries sent to the strong model)", ylabel="mean pass rate")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _bins(report: Report, router: str) -> Figure:
    """Left: pass rates and gain in bins of p_weak, with query counts. Right: predicted against labelled p_weak."""
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    rows = report["bins"][router]["rows"]
    edges = np.array([rows[0]["low"], *(row["high"] for row in rows)])
    pass_rate_bars(left, rows, edges, "predicted p_weak (bins; the number of queries above)")
    left.set_title(f"{router}: pass rate and gain by predicted p_weak")
    label = report["bins"][router]["label"]
    low, high = rows[0]["low"], rows[-1]["high"]
    if low >= 0 and high <= 1:  # other scores rank, but are no probabilities
        right.plot([low, high], [low, high], "--", color=INK, linewidth=1, label="perfectly calibrated")
        right.legend(loc="upper left", fontsize=9)
    counts = np.array([row["num_queries"] for row in rows])
    # In square points, so the area grows with the count; 12 keeps a bin of one query visible.
    sizes = 12 + 160 * counts / counts.max()
    right.scatter(_floats([r["p_weak"] for r in rows]), _floats([r["label"] for r in rows]), s=sizes, color=STRONG, alpha=0.75)
    right.set(xlabel="mean predicted p_weak", ylabel=f"mean {label}", xlim=(low, high), ylim=(-0.03, 1.05))
    right.set_title("Calibration (area: queries)")
    return figure


def _verdicts(report: Report) -> Figure:
    """A bar a model: what its samples of all test queries are, and below those of the queries that nobody solves."""
    blocked = report["blocked"]["all"]
    bars = {f"{model}, all queries": of_task["all"] for model, of_task in report["verdicts"].items()}
    if blocked["num_queries"]:
        bars |= {f"{model}, blocked queries": {"right": 0.0, **found} for model, found in blocked["models"].items()}
    figure = Figure(figsize=(7.6, 0.9 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(bars))
    for verdict, colour in VERDICT_COLOURS.items():
        widths = _floats([found[verdict] for found in bars.values()])
        axes.barh(range(len(bars)), widths, 0.7, left=left, color=colour, label=verdict.replace("_", " "))
        left += widths
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the samples")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside right center")
    return figure


def pass_rate_bars(axes: Axes, rows: list[dict[str, Any]], edges: np.ndarray, xlabel: str) -> None:
    """Mean pass rates of both models and the gain in bins; rows as `bins.binned` gives them.

    edges: where the bins are on the axis, (num_bins + 1,).
    """
    centres, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)  # (num_bins,)
    # In shares of a bin's width: three bars of 0.25, two gaps of 0.02 between them.
    for offset, column, colour, name in (
        (-0.27, "pass_rate_weak", WEAK, "weak"),
        (0.0, "pass_rate_strong", STRONG, "strong"),
        (0.27, "gain", GAIN, "gain"),
    ):
        axes.bar(centres + offset * width, _floats([row[column] for row in rows]), 0.25 * width, color=colour, label=name)
    for centre, row in zip(centres, rows, strict=True):
        axes.annotate(f"{row['num_queries']:,}", (centre, 1.02), ha="center", fontsize=8, annotation_clip=False)
    axes.axhline(0, color=INK, linewidth=0.8)
    # A bin's gain is below 0 where the weak model is better there.
    bottom = min(0.0, *(row["gain"] for row in rows if row["gain"] is not None))
    axes.set(xlim=(edges[0], edges[-1]), ylim=(bottom - 0.02 if bottom else 0, 1.08))
    axes.set(xlabel=xlabel, ylabel="mean pass rate")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=9)


def _floats(values: list[float | None]) -> np.ndarray:
    """None becomes NaN, which matplotlib leaves out."""
    return np.array(values, dtype=float)
