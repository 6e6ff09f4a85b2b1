"""The paper's own tables, what follows from them alone, and whether a run has the paper's setting.

Peng et al., "Firewall Routing: Blocking Leads to Better Hybrid Inference for LLMs", EMNLP 2025, pages 6540-6565
(aclanthology.org/2025.emnlp-main.331). published.json has every cell of its Tables 1 to 4, in percent, and the gains that its text
names; no intervals are printed there.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.metrics import FRACTIONS, METRICS

# Sec. 4.1 names Llama3.2-1B and Llama3.1-70B, and not whether base or Instruct; base is our reading.
WEAK, STRONG, BACKBONE = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-70B", "microsoft/deberta-v3-large"
NUM_SAMPLES, EPOCHS = 32, 10

OURS = ("Ours (Hard Block)", "Ours (Soft Block)")
LINEAR = "Linear Interpolation"
PRINTED = np.array([0.2, 0.5, 0.8])  # the strong fractions of the printed pass rates
UNLIKELY = 1.5  # points between a printed APGR and the one that its pass rates imply; where the paper fits, 0.4 at most


class Published(NamedTuple):
    """rows: table -> method -> percents. Tables 1 to 3: (12,), for each data set APGR and three pass rates; Table 4: (3,), APGR."""

    datasets: tuple[str, ...]
    columns: tuple[str, ...]
    rows: dict[str, dict[str, list[float]]]
    gains_in_text: dict[str, dict[str, float]]

    def columns_of(self, table: str) -> tuple[str, ...]:
        """The columns of one data set: Table 4 has the first alone."""
        width = len(next(iter(self.rows[table].values()))) // len(self.datasets)
        return self.columns[:width]

    def cell(self, table: str, method: str, dataset: str, column: str) -> float | None:
        """In percent; None where the table has no such column."""
        columns = self.columns_of(table)
        if column not in columns:
            return None
        return self.rows[table][method][self.datasets.index(dataset) * len(columns) + columns.index(column)]


@cache
def published() -> Published:
    found = json.loads(files(__package__).joinpath("published.json").read_text())
    return Published(tuple(found["datasets"]), tuple(found["columns"]), found["tables"], found["gains_in_text"])


def same_setting(config: RunConfig) -> bool:
    """Whether the run is the paper's: its pair, its number of samples, its backbone and epochs (Sec. 4.1)."""
    paths = []
    for key in (config.pair.weak, config.pair.strong):
        model = config.models[key]
        # Which weights a server has behind a name is not known here.
        paths.append(None if isinstance(model, OpenAIModelConfig) else model.path)
    router = config.router
    run = (*paths, config.sampling.num_samples, router.backbone.path, router.epochs)
    return run == (WEAK, STRONG, NUM_SAMPLES, BACKBONE, EPOCHS)


# What follows from the printed numbers -------------------------------------------------------------------------------


def implied_ends(table: str, dataset: str) -> tuple[float, float]:
    """The weak and the strong model's pass rate in percent: the ends of the line through the row of linear interpolation."""
    rates = [published().cell(table, LINEAR, dataset, column) for column in published().columns[1:]]
    # Three printed points, two unknowns: least squares. (3, 2) times (2,).
    ends = np.linalg.lstsq(np.stack([1 - PRINTED, PRINTED], axis=1), np.array(rates), rcond=None)[0]
    return float(ends[0]), float(ends[1])


def implied_apgr(rates: ArrayLike, ends: tuple[float, float], metric: str = "apgr_mean") -> float:
    """APGR in percent of a monotone cubic (PCHIP) through the ends and the three printed pass rates, (3,), in percent.

    >>> [round(implied_apgr([22.48, 38.99, 52.88], (9.94, 60.0), metric), 1) for metric in ("apgr_mean", "apgr")]
    [55.0, 55.4]
    """
    rates = np.asarray(rates, dtype=np.float64)
    points = np.array([ends[0], *rates, ends[1]])
    curve: NDArray[np.float64] = PchipInterpolator([0, *PRINTED, 1], points)(FRACTIONS)
    return 100 * float(METRICS[metric](curve))


def inconsistencies() -> list[str]:
    """Where the paper's text and tables do not fit together, found from the numbers; see also the claims that its own rows deny."""
    return [*_gains(), *_repeated(), *_unlikely()]


def _gains() -> Iterator[str]:
    paper = published()
    for table, gains in paper.gains_in_text.items():
        for dataset, in_text in gains.items():
            apgr = {method: paper.cell(table, method, dataset, "APGR") or 0.0 for method in paper.rows[table]}
            in_rows = max(apgr[name] for name in OURS) - max(value for name, value in apgr.items() if name not in OURS)
            if abs(in_rows - in_text) > 0.005:  # half of the last printed digit
                yield f"{_title(table)}, {dataset}: the text names a gain of {in_text:.2f} points, its rows give {in_rows:.2f}."


def _repeated() -> Iterator[str]:
    """Cells of Table 2 that are Table 1's, although its weak model is another."""
    paper = published()
    for method in paper.rows["table_1"]:
        for dataset in paper.datasets if method != LINEAR else ():
            first, second = ([paper.cell(table, method, dataset, c) for c in paper.columns] for table in ("table_1", "table_2"))
            same = [what for what, cells in (("APGR", slice(1)), ("pass rates", slice(1, 4))) if first[cells] == second[cells]]
            if same:
                yield f"{method}, {dataset}: {' and '.join(same)} of Table 2 are Table 1's, though the weak model is another."


def _unlikely() -> Iterator[str]:
    paper = published()
    for table in ("table_1", "table_2", "table_3"):
        for dataset in paper.datasets:
            ends = implied_ends("table_2" if table == "table_2" else "table_1", dataset)
            for method in paper.rows[table]:
                printed, *rates = (paper.cell(table, method, dataset, column) for column in paper.columns)
                assert printed is not None
                implied = implied_apgr(np.array(rates, dtype=np.float64), ends)
                if abs(implied - printed) > UNLIKELY:
                    where = f"{_title(table)}, {method}, {dataset}"
                    yield f"{where}: the pass rates imply an APGR near {implied:.1f}, printed is {printed:.2f}."


def _title(table: str) -> str:
    return table.replace("_", " ").capitalize()
