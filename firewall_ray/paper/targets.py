"""The pass rates that the paper's own tables imply, beside what a run measured: the only check there is on what it leaves unsaid.

Rows in: queries/ and grades/<model>/, test split. Rows out: `Compared`, one a model and task. Runs in the driver: no Ray.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firewall_ray.config.models import ModelConfig, VllmModelConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.paper.variants import other_models
from firewall_ray.store.layout import ArtifactStore

# Percent. The row Linear Interpolation is a line in the share of strong calls, so its ends are the two models' own pass rates:
# weak = PR20 - (PR80 - PR20) / 3, strong = PR80 + (PR80 - PR20) / 3. Of Table 1 (1B, 70B) and Table 2 (3B), to +-0.02.
PUBLISHED: dict[str, dict[str, float]] = {
    "Llama-3.2-1B": {"triviaqa": 9.94, "gsm8k": 8.05, "humaneval": 6.80},
    "Llama-3.2-3B": {"triviaqa": 17.19, "gsm8k": 9.18, "humaneval": 9.49},
    "Llama-3.1-70B": {"triviaqa": 60.00, "gsm8k": 26.26, "humaneval": 13.40},
}
TOLERANCE = 0.03  # of a pass rate. Sampling alone moves that of 1,319 questions by less than 0.01.
WHAT_TO_VARY = (
    "What the paper leaves open may differ: sampling.temperature, sampling.stop, sampling.max_tokens, the rule in grading, and the "
    "space at the prompt's end (models.<key>.keep_trailing_space). jobs/paper.py --calibrate tries a grid of them on few queries."
)

logger = logging.getLogger("firewall_ray")


@dataclass(frozen=True)
class Compared:
    """One model on one task. Rates in [0, 1]; standard_error: of `measured`, over the queries."""

    model: str
    task: str
    target: float
    measured: float
    standard_error: float
    num_queries: int

    @property
    def difference(self) -> float:
        return self.measured - self.target

    @property
    def is_near(self) -> bool:
        # To a hundredth of a point, as they are printed: 12.94 against 9.94 is 3 points and not 3.0000000000000004.
        return round(abs(self.difference), 4) <= TOLERANCE


def targets_of(config: RunConfig) -> dict[str, dict[str, float]]:
    """Percent by model key and task: the config's own, else the paper's for its models, base or Instruct."""
    names = {key: _name(model) for key, model in config.models.items()}
    return {key: dict(PUBLISHED[name]) for key, name in names.items() if name in PUBLISHED} | dict(config.paper.targets)


def check_targets(config: RunConfig, store: ArtifactStore) -> list[Compared]:
    """Of every model that the tables need, has a target and is graded; in the order of the pair, then Table 2's others."""
    targets = targets_of(config)
    keys = [key for key in (config.pair.weak, config.pair.strong, *other_models(config)) if key in targets]
    # Also grades that another program wrote.
    graded = [key for key in keys if store.grades(key).state() not in ("missing", "unfinished")]
    # Outcomes that were imported have their queries too; without any there is nothing to compare.
    if not graded or store.queries().state() == "missing":
        return []
    return [row for key in graded for row in compare(store, key, targets[key])]


def compare(store: ArtifactStore, key: str, targets: Mapping[str, float]) -> list[Compared]:
    """The model's pass rates on the test queries of each task of `targets` that has some. targets: percent."""
    queries = store.queries().require(["query_id", "task", "split"]).read(["query_id", "task", "split"])
    test = queries.filter(pc.equal(queries["split"], "test"))
    grades = store.grades(key).require(["query_id", "correct"]).read(["query_id", "correct"])
    rates = _pass_rates(test["query_id"], grades)
    tasks = np.array(test["task"].to_pylist(), dtype=np.str_)
    compared = []
    for task, target in targets.items():
        found = rates[(tasks == task) & ~np.isnan(rates)]
        if len(found):
            # Queries are drawn, and their samples with them: the spread over queries holds both.
            error = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")
            compared.append(Compared(key, task, target / 100, float(found.mean()), error, len(found)))
    return compared


def warn_of_distance(rows: list[Compared]) -> None:
    """One warning for all that are past TOLERANCE, which says what to vary."""
    far = [f"{row.model} on {row.task} by {100 * row.difference:+.1f}" for row in rows if not row.is_near]
    if far:
        logger.warning(
            "pass rates differ from the paper's by more than %.0f points: %s. %s", 100 * TOLERANCE, ", ".join(far), WHAT_TO_VARY
        )


def _pass_rates(query_ids: pa.ChunkedArray, grades: pa.Table) -> np.ndarray:
    """float64, (num_queries,), in [0, 1]; NaN for a query without verdicts."""
    rows = pc.index_in(query_ids, value_set=grades["query_id"].combine_chunks())
    # A null row takes a null: no grade, as one with an error has none.
    verdicts = grades["correct"].take(rows).to_pylist()
    return np.array([np.mean(correct) if correct else np.nan for correct in verdicts], dtype=np.float64)


def _name(model: ModelConfig) -> str:
    """
    >>> _name(VllmModelConfig(path="meta-llama/Llama-3.2-1B-Instruct")), _name(VllmModelConfig(path="/m/Meta-Llama-3.1-70B/"))
    ('Llama-3.2-1B', 'Llama-3.1-70B')
    """
    said = model.path if isinstance(model, VllmModelConfig) else model.model
    # Meta-: how Llama 3.1's hub ids once began.
    return said.rstrip("/").rpartition("/")[2].removesuffix("-Instruct").removeprefix("Meta-")
