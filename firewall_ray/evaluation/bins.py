"""The report's binned figures as numbers: queries in bins of predicted p_weak. numpy only.

Of equal width, as a calibration plot wants them: the axis is p_weak itself, beside which the label's mean stands. The paper's
figures have bins of equal count, see `paper/binned.py`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def binned(
    p_weak: Floats, pass_rate_weak: Floats, pass_rate_strong: Floats, label: Floats, num_bins: int = 10
) -> list[dict[str, Any]]:
    """Means of the queries in bins of equal width over [0, 1], or over the scores' own range where they leave it.

    All inputs (num_queries,), at least one query. Each row: `low` and `high` (the bin, high excluded but in the last one),
    `num_queries`, and the means `p_weak`, `label`, `pass_rate_weak`, `pass_rate_strong`, `gain`; NaN in an empty bin.
    A calibrated router has `p_weak` close to `label` in every bin.
    """
    probabilities = bool(np.all((p_weak >= 0) & (p_weak <= 1)))
    # (num_bins + 1,). range=None: from the lowest score to the highest.
    edges = np.histogram_bin_edges(p_weak, num_bins, range=(0.0, 1.0) if probabilities else None)
    # (num_queries,), 0 to num_bins - 1. The clip puts a score on the last edge into the last bin, not beyond it.
    bin_of = np.clip(np.searchsorted(edges, p_weak, side="right") - 1, 0, num_bins - 1)
    num_queries = np.bincount(bin_of, minlength=num_bins)
    columns = {
        "p_weak": p_weak,
        "label": label,
        "pass_rate_weak": pass_rate_weak,
        "pass_rate_strong": pass_rate_strong,
        "gain": pass_rate_strong - pass_rate_weak,
    }
    # 0 / NaN is NaN without the warning that 0 / 0 gives.
    filled = np.where(num_queries > 0, num_queries, np.nan)
    means = {name: np.bincount(bin_of, weights=values, minlength=num_bins) / filled for name, values in columns.items()}
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "num_queries": int(num_queries[i]),
            **{name: float(values[i]) for name, values in means.items()},
        }
        for i in range(num_bins)
    ]
