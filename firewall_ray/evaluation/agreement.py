"""How far two graders agree on the same answers: accuracy, and Cohen's kappa (1960), which takes off what chance alone would bring.

Numpy only. Where nine of ten answers are right, a judge that calls all of them right has accuracy 0.9 and kappa 0.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firewall_ray.evaluation.intervals import percentile_interval

NUM_RESAMPLES = 2_000


def agreement(judged: ArrayLike, labelled: ArrayLike, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """num_answers; accuracy and kappa, each {value, low, high}, of two bool arrays, (num_answers,); percentile bootstrap.

    Kappa is None where both graders give all answers the same one verdict; both are where there are no answers.
    """
    pairs = 2 * np.asarray(labelled, dtype=np.intp) + np.asarray(judged, dtype=np.intp)
    table = np.bincount(pairs, minlength=4)  # labelled and judged: both wrong, judged right alone, labelled right alone, both right
    num = int(table.sum())
    # Answers drawn with replacement are draws of the four cells with the shares that they have.
    resamples = np.random.default_rng(seed).multinomial(num, table / max(num, 1), NUM_RESAMPLES) if num else np.zeros((1, 4))
    found: dict[str, Any] = {"num_answers": num}
    for name, measure in (("accuracy", _accuracy), ("kappa", cohen_kappa)):
        bounds = percentile_interval(float(measure(table)), measure(resamples), confidence)
        # None, not NaN: it goes into manifests and a job's closing line, which are strict JSON.
        found[name] = {end: None if math.isnan(value := getattr(bounds, end)) else value for end in ("value", "low", "high")}
    return found


def cohen_kappa(table: ArrayLike) -> NDArray[np.float64]:
    """Of counts (..., 4), see `agreement`: (observed - expected) / (1 - expected agreement); NaN where chance explains everything.

    >>> round(float(cohen_kappa([15, 10, 5, 20])), 3)  # observed 0.7; expected (25 * 20 + 25 * 30) / 50**2 = 0.5
    0.4
    """
    counts = np.asarray(table, dtype=np.float64)
    total = counts.sum(axis=-1)
    labelled, judged = counts[..., 2] + counts[..., 3], counts[..., 1] + counts[..., 3]  # how many each calls right
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (labelled * judged + (total - labelled) * (total - judged)) / total**2
        return np.asarray(np.where(expected < 1, (_accuracy(counts) - expected) / (1 - expected), np.nan))


def _accuracy(table: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(table, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((counts[..., 0] + counts[..., 3]) / counts.sum(axis=-1))
