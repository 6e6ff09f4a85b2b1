"""Do the two rules of `grading.triviaqa.match` agree with people?

Measured: for each model of an outcomes file that people judged, accuracy, precision, recall and Cohen's kappa of a rule's verdicts
against theirs. Bound: 1, and for kappa 0 is chance. Questions that people found improper are left out.

    python benchmarks/triviaqa_agreement.py evouna_triviaqa.parquet triviaqa_evouna.jsonl.gz

Rows in: `query_id`, `model`, `response`, `correct` and `improper` of the first file, `id` and `normalized_aliases` of the second.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_score, recall_score

from firewall_ray.tasks.triviaqa import contains_alias, exact_match

RULES: Mapping[str, Callable[[str, Iterable[str]], bool]] = {"exact": exact_match, "contains": contains_alias}
METRICS = {
    "accuracy": accuracy_score,
    # A rule that finds nothing right has no precision.
    "precision": lambda people, rule: precision_score(people, rule, zero_division=np.nan),
    "recall": recall_score,
    "kappa": cohen_kappa_score,
}


def main(
    outcomes: Annotated[Path, typer.Argument(help="Parquet: responses with people's judgements.")],
    questions: Annotated[Path, typer.Argument(help="JSON Lines, gzipped: the aliases of each question.")],
) -> None:
    """Print a table, a line for a model and a rule; JSON last."""
    with gzip.open(questions, "rt") as lines:
        aliases = {row["id"]: row["normalized_aliases"] for row in map(json.loads, lines)}
    columns = ["query_id", "model", "response", "correct", "improper"]
    rows = [row for row in pq.read_table(outcomes, columns=columns).to_pylist() if not row["improper"]]
    figures: dict[str, Any] = {}
    print(f"{'model':<28}{'rule':<10}" + "".join(f"{name:>11}" for name in METRICS) + f"{'n':>7}")
    for model in [*dict.fromkeys(row["model"] for row in rows), "all"]:
        judged = [row for row in rows if model in (row["model"], "all")]
        people = np.array([bool(row["correct"]) for row in judged])
        for rule, is_right in RULES.items():
            verdicts = np.array([is_right(row["response"], aliases[row["query_id"]]) for row in judged])
            found = {name: float(metric(people, verdicts)) for name, metric in METRICS.items()}
            print(f"{model:<28}{rule:<10}" + "".join(f"{value:>11.4f}" for value in found.values()) + f"{len(judged):>7,}")
            figures[f"{model}, {rule}"] = found
    print(json.dumps({"benchmark": "triviaqa_agreement", "rows": len(rows), "figures": figures}))


if __name__ == "__main__":
    typer.run(main)
