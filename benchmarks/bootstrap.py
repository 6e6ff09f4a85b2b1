"""The report's bootstrap: seconds for 1,000 resamples of many queries and routers, against what a resample cannot do without.

The bound is, in the same run and by turns: draw the resample once, and for each router gather its counts in the ranking's order.
Medians over the turns, each of a few resamples.

    python benchmarks/bootstrap.py
    python benchmarks/bootstrap.py --queries 1000000 --routers 3
"""

import json
import statistics
import time
from typing import Annotated

import numpy as np
import typer

from firewall_ray.evaluation.intervals import bootstrap_curves
from firewall_ray.store.dataset import versions

RESAMPLES = 32  # a turn; two of the batches in which the gains are gathered


def bound_s(queries: int, orders: dict[str, np.ndarray]) -> float:
    """orders: intp, (queries,) each. Seconds of one resample."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(RESAMPLES):
        counts = np.bincount(rng.integers(queries, size=queries), minlength=queries).astype(np.uint8)
        for order in orders.values():
            counts.take(order)
    return (time.perf_counter() - started) / RESAMPLES


def main(
    queries: Annotated[int, typer.Option(min=1_000)] = 300_000,
    routers: Annotated[int, typer.Option(min=1)] = 12,
    turns: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print both, and their ratio."""
    rng = np.random.default_rng(1)
    weak, strong = (rng.binomial(32, share, queries) / 32 for share in (0.4, 0.6))
    orders = {f"router {number}": rng.permutation(queries) for number in range(routers)}
    ours, bounds = [], []
    for turn in range(turns):
        started = time.perf_counter()
        bootstrap_curves(weak, strong, orders, RESAMPLES, seed=turn)
        ours.append((time.perf_counter() - started) / RESAMPLES)
        bounds.append(bound_s(queries, orders))
    one, bound = statistics.median(ours), statistics.median(bounds)
    print(f"{queries:,} queries x {routers} routers: {1_000 * one:.1f} s for 1,000 resamples; the bound {1_000 * bound:.1f} s")
    figures = {"queries": queries, "routers": routers, "seconds_of_1000": 1_000 * one, "ratio_to_bound": round(bound / one, 3)}
    print(json.dumps({"benchmark": "bootstrap", **figures, "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
