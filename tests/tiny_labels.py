"""Labels of tiny_world queries without any model: the pass rates that a perfectly tiered pair would have."""

import pyarrow as pa

from firewall_ray.schemas import LABEL_DESIGNS, LABELS
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import make_query
from firewall_ray.tasks.tiny_world import draw_unique

# Easy: both models solve it. Medium: only the strong one. Hard: neither. (weak, strong)
PASS_RATES = {"E": (1.0, 1.0), "M": (0.0, 1.0), "H": (0.0, 0.0)}


def tiny_labels(num_train: int, num_validation: int, num_test: int = 0, seed: int = 0) -> pa.Table:
    """A table with the columns of labels/. Both pass rates are 0 or 1, so Eq. 4 to 7 collapse: blocking labels are 0 for
    medium queries and 1 elsewhere; hard_label and win_rate likewise; weak_pass_rate is 1 for easy ones alone."""
    splits = ["train"] * num_train + ["validation"] * num_validation + ["test"] * num_test
    rows = []
    for split, item in zip(splits, draw_unique(seed, len(splits)), strict=True):
        query = make_query("tiny_world", split, item.question, "{}")
        weak, strong = PASS_RATES[item.tier]
        labels = dict.fromkeys(LABEL_DESIGNS, 0.0 if item.tier == "M" else 1.0)
        labels |= {"weak_pass_rate": weak, "strong_pass_rate": 1 - strong}
        rows.append(
            {
                "query_id": query.query_id,
                "task": query.task,
                "split": split,
                "prompt": query.prompt,
                "num_samples": 32,
                "pass_rate_weak": weak,
                "pass_rate_strong": strong,
                "greedy_weak": weak == 1,
                "greedy_strong": strong == 1,
                **labels,
            }
        )
    return pa.Table.from_pylist(rows, schema=LABELS)


def write_labels(store: ArtifactStore, table: pa.Table) -> None:
    dataset = store.labels()
    dataset.begin({})
    with dataset.writer() as writer:
        writer.write_table(table)
    dataset.finish({}, {})
