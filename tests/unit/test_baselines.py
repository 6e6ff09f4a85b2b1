import numpy as np
import pyarrow as pa
import pytest

from firewall_ray.baselines.trivial import TRIVIAL_BASELINES, oracle_scores, random_scores
from firewall_ray.evaluation.metrics import apgr
from firewall_ray.schemas import SCORES

RNG = np.random.default_rng(0)
LABELS = pa.table(
    {
        "query_id": [f"q{i}" for i in range(3_000)],
        "pass_rate_weak": RNG.binomial(8, 0.4, 3_000).astype(np.float32) / 8,
        "pass_rate_strong": RNG.binomial(8, 0.6, 3_000).astype(np.float32) / 8,
    }
)


@pytest.mark.parametrize("name", TRIVIAL_BASELINES)
def test_every_baseline_writes_score_rows(name: str) -> None:
    table = TRIVIAL_BASELINES[name](LABELS)
    assert table.schema == SCORES
    assert table["query_id"] == LABELS["query_id"]
    assert 0 <= table["p_weak"].to_numpy().min() <= table["p_weak"].to_numpy().max() <= 1


def apgr_of(table: pa.Table) -> float:
    return apgr(
        table["p_weak"].to_numpy(),
        LABELS["pass_rate_weak"].to_numpy(),
        LABELS["pass_rate_strong"].to_numpy(),
        LABELS["query_id"].to_pylist(),
    )


def test_random_is_near_one_half_and_the_oracle_far_above() -> None:
    # sd of a random order: sqrt(var(gain) / 12 / N) / gap = sqrt(0.06 / 36000) / 0.2 = 0.0065.
    assert apgr_of(random_scores(LABELS)) == pytest.approx(0.5, abs=0.026)
    assert apgr_of(oracle_scores(LABELS)) > 0.75


def test_random_belongs_to_the_query_and_not_to_the_row() -> None:
    reverse = LABELS.take(list(range(len(LABELS)))[::-1])
    assert random_scores(reverse)["p_weak"].to_pylist() == random_scores(LABELS)["p_weak"].to_pylist()[::-1]
    assert random_scores(LABELS, seed=1)["p_weak"] != random_scores(LABELS)["p_weak"]


def test_the_oracle_sends_the_largest_gain_first_and_losses_last() -> None:
    table = pa.table({"query_id": ["a", "b", "c"], "pass_rate_weak": [1.0, 0.0, 0.5], "pass_rate_strong": [0.0, 1.0, 0.75]})
    assert oracle_scores(table)["p_weak"].to_pylist() == [1.0, 0.0, 0.375]
