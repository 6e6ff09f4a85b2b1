"""What budget control holds and what it costs, against a fixed threshold and against the same budget spent in hindsight.

Three things in one run. 1. The test split of a run, in shuffled orders: the realised strong fraction, and the mean pass rate of
the chosen models. The bound is `policy.exact_budget`: exactly the target, of queries ranked with all scores known; `of_bound`
is the share of its gain over the weak model that is kept. 2. Drifting traffic, made up: how far the worst window lies from the
target, and how many decisions agree with those that hindsight would have made with the same budget, window by window. 3. Time.

    python benchmarks/budget_control.py --root runs/quickstart
"""

import json
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer

from firewall_ray.policy import QuantileTable, exact_budget, goes_strong
from firewall_ray.store.dataset import versions
from firewall_ray.store.layout import ArtifactStore
from serve_app.routing.budget import BudgetController

TARGETS = (0.2, 0.5, 0.8)


def controlled(table: QuantileTable, p_weak: np.ndarray, keys: list[str], target: float, window: int) -> np.ndarray:
    """Decisions, bool, (num_requests,), each knowing those before it."""
    control = BudgetController(table, window, target)
    strong = np.zeros(len(p_weak), dtype=bool)
    for i, (score, key) in enumerate(zip(p_weak.tolist(), keys, strict=True)):
        strong[i] = goes_strong([score], [key], control.threshold(target))[0]
        control.record(target, score, bool(strong[i]))
    return strong


# 1. A run's test split -----------------------------------------------------------------------------------------------


def on_the_test_split(root: str, router: str, num_orders: int, window: int) -> list[dict[str, float]]:
    """A row for each target. Means over the orders; `worst`: the largest distance from the target."""
    store = ArtifactStore(root)
    rows = store.labels().read().join(store.scores(router).read(), "query_id").to_pandas()
    validation, test = (rows[rows["split"] == split] for split in ("validation", "test"))
    table = QuantileTable.from_scores(validation["p_weak"])
    p_weak, prompts = test["p_weak"].to_numpy(np.float64), test["prompt"].to_numpy()
    weak, strong = (test[f"pass_rate_{model}"].to_numpy(np.float64) for model in ("weak", "strong"))
    found = []
    for target in TARGETS:
        fixed = goes_strong(p_weak, prompts.tolist(), table.threshold(target))
        best = exact_budget(p_weak, prompts.tolist(), round(target * len(p_weak)))
        fractions, pass_rates = [], []
        for seed in range(num_orders):
            order = np.random.default_rng(seed).permutation(len(p_weak))
            decisions = controlled(table, p_weak[order], prompts[order].tolist(), target, window)
            fractions.append(decisions.mean())
            pass_rates.append(np.where(decisions, strong[order], weak[order]).mean())
        bound = np.where(best, strong, weak).mean()
        found.append(
            {
                "target": target,
                "fixed_fraction": fixed.mean(),
                "controlled_fraction": np.mean(fractions),
                "controlled_worst": np.abs(np.array(fractions) - target).max(),
                "fixed_pass_rate": np.where(fixed, strong, weak).mean(),
                "controlled_pass_rate": np.mean(pass_rates),
                "bound_pass_rate": bound,
                "of_bound": (np.mean(pass_rates) - weak.mean()) / (bound - weak.mean()),
            }
        )
    return found


# 2. Drift ------------------------------------------------------------------------------------------------------------

# Added to independent scores of the calibration's distribution, whose standard deviation is 1; i: number of the request.
DRIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda i: np.zeros(len(i)),
    "mean up by 1": lambda i: np.ones(len(i)),
    "all above the calibration": lambda i: np.full(len(i), 20.0),
    "all below the calibration": lambda i: np.full(len(i), -20.0),
    "slow, 1 in 1,000": lambda i: i / 1_000,
    "switch by 20 at half": lambda i: np.where(i < len(i) // 2, 0.0, 20.0),
    "bursts of 300, by 10": lambda i: 10.0 * (i // 300 % 2),
    "wave of 1,900, by 3": lambda i: 3 * np.sin(i / 300),
}


def worst_window(strong: np.ndarray, target: float, window: int) -> float:
    """Largest distance of the realised fraction from the target, over every window."""
    total = np.concatenate([[0], np.cumsum(strong)])
    return float(np.abs((total[window:] - total[:-window]) / window - target).max())


def in_hindsight(p_weak: np.ndarray, keys: list[str], target: float, window: int) -> np.ndarray:
    """The target spent exactly in each window, by rank."""
    starts = range(0, len(p_weak), window)
    parts = [(p_weak[start : start + window], keys[start : start + window]) for start in starts]
    return np.concatenate([exact_budget(scores, their_keys, round(target * len(scores))) for scores, their_keys in parts])


def under_drift(num_requests: int, seed: int, window: int) -> list[dict[str, float | str]]:
    """A row for each drift and target."""
    rng = np.random.default_rng(seed)
    table = QuantileTable.from_scores(rng.normal(size=1_000))
    i = np.arange(num_requests)
    keys = [f"request {each}" for each in i]
    scenarios = {name: rng.normal(size=num_requests) + drift(i) for name, drift in DRIFTS.items()}
    scenarios["all tied"] = np.zeros(num_requests)
    found: list[dict[str, float | str]] = []
    for name, p_weak in scenarios.items():
        for target in TARGETS:
            fixed = goes_strong(p_weak, keys, table.threshold(target))
            decisions = controlled(table, p_weak, keys, target, window)
            best = in_hindsight(p_weak, keys, target, window)
            found.append(
                {
                    "drift": name,
                    "target": target,
                    "fixed_worst": worst_window(fixed, target, window),
                    "controlled_worst": worst_window(decisions, target, window),
                    "fixed_agrees": (fixed == best).mean(),
                    "controlled_agrees": (decisions == best).mean(),
                }
            )
    return found


# 3. Time -------------------------------------------------------------------------------------------------------------


def microseconds_a_decision(window: int, num: int = 20_000) -> dict[str, float]:
    """With a threshold of the card's table, and controlled; on one core."""
    p_weak = np.random.default_rng(0).normal(size=num)
    keys = [str(i) for i in range(num)]
    table = QuantileTable.from_scores(p_weak[:1_000])
    began = time.perf_counter()
    for score, key in zip(p_weak.tolist(), keys, strict=True):
        goes_strong([score], [key], table.threshold(0.5))
    fixed_s = time.perf_counter() - began
    began = time.perf_counter()
    controlled(table, p_weak, keys, 0.5, window)
    return {"fixed_us": fixed_s / num * 1e6, "controlled_us": (time.perf_counter() - began) / num * 1e6}


def show(title: str, rows: list[dict[str, float]] | list[dict[str, float | str]]) -> None:
    """A table; fractions with three digits."""
    print(f"\n{title}")
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in [list(rows[0]), *cells]) for column in range(len(rows[0]))]
    for line in [list(rows[0]), *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main(
    root: Annotated[
        str | None, typer.Option(help="A finished run with labels and scores. Without one, drifts and time alone.")
    ] = None,
    router: Annotated[str, typer.Option(help="Whose scores.")] = "soft_block",
    orders: Annotated[int, typer.Option(min=1, help="Shuffled orders of the test split, seeds 0, 1, ...")] = 20,
    window: Annotated[int, typer.Option(min=200, help="serving.budget_control.window")] = 1_000,
    num_requests: Annotated[int, typer.Option(min=2_000, help="Of drifting traffic.")] = 12_000,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Print the tables, then one JSON line. Worst distances are bounded by 0.02, agreement and of_bound by about 1."""
    summary: dict[str, object] = {}
    if root is not None:
        summary["test_split"] = on_the_test_split(root, router, orders, window)
        show(f"Test split of {root}, {router}, {orders} orders", summary["test_split"])  # type: ignore[arg-type]
    drifts = under_drift(num_requests, seed, window)
    show(f"{num_requests:,} requests under drift, window {window:,}", drifts)
    times = microseconds_a_decision(window)
    print(f"\nA decision: fixed {times['fixed_us']:.1f} us, controlled {times['controlled_us']:.1f} us")
    summary |= {"drifts": drifts, **times, "window": window, "orders": orders, "seed": seed, "versions": versions()}
    print(json.dumps(summary, default=float))


if __name__ == "__main__":
    typer.run(main)
