"""Which router stands for which row of the paper's tables, and which task for which of its data sets. Tables and claims read it."""

from typing import NamedTuple

from firewall_ray.config.run import RunConfig
from firewall_ray.paper.names import BASELINE_ROWS
from firewall_ray.paper.published import LINEAR, OURS

# Where a row is measured: on the pair that the routers were trained for, on another one with the same routers (the first of
# `paper.pairs`), or on the first pair with the routers of another backbone (the first of `paper.backbones`).
FIRST, SECOND, CAUSAL = "first pair", "second pair", "causal backbone"
RANDOM = "random"


class Row(NamedTuple):
    """routers: names of scores; the first that is there stands for the row."""

    setting: str
    routers: tuple[str, ...]


def _methods(setting: str) -> dict[str, Row]:
    hard, soft = OURS
    baselines = {method: Row(setting, names) for method, names in BASELINE_ROWS.items()}
    return {
        LINEAR: Row(setting, (RANDOM,)),
        **baselines,
        hard: Row(setting, ("hard_block",)),
        soft: Row(setting, ("soft_block",)),
    }


ROWS: dict[str, dict[str, Row]] = {
    "table_1": _methods(FIRST),
    "table_2": _methods(SECOND),
    "table_3": {
        "Weak Model Pass Rate": Row(FIRST, ("weak_pass_rate",)),
        "Strong Model Pass Rate": Row(FIRST, ("strong_pass_rate",)),
        "Hard Label": Row(FIRST, ("hard_label",)),
        "Hard Blocking w/o SMS": Row(FIRST, ("hard_block_greedy",)),  # SMS: strong model sampling; Eq. 6
        "Hard Block": Row(FIRST, ("hard_block",)),
        "Soft Block": Row(FIRST, ("soft_block",)),
    },
    "table_4": {
        "Hard Blocking (Causal)": Row(CAUSAL, ("hard_block",)),
        "Hard Blocking (Deberta)": Row(FIRST, ("hard_block",)),
        "Soft Blocking (Causal)": Row(CAUSAL, ("soft_block",)),
        "Soft Blocking (Deberta)": Row(FIRST, ("soft_block",)),
    },
}


# By the paper's name of a method, as its figures use it: whose scores rank the queries.
METHODS: dict[str, tuple[str, ...]] = {name: row.routers for table in ("table_1", "table_3") for name, row in ROWS[table].items()}


def heading(dataset: str, config: RunConfig) -> str:
    """What a data set's columns are called: its name, and the task where another one stands for it."""
    task = {str(name): task for name, task in config.paper.datasets.items()}.get(dataset)
    return dataset if task in (None, dataset.lower()) else f"{dataset}: {task}"
