"""Verdicts on the paper's statements, from curves worked out by hand."""

import numpy as np
import pytest

from firewall_ray.config.run import EvaluationConfig
from firewall_ray.paper.claims import check_claims
from firewall_ray.paper.measured import Curve
from firewall_ray.paper.rows import ROWS

DATASETS = ("TriviaQA", "GSM8K", "HumanEval")


def curve(router: str, bend: float, spread: float = 0.0, seed: int = 0) -> Curve:
    """From 0 to 1, above the line by `bend` at the points between: a mean APGR of 0.5 + 9/11 bend. spread: of bend in resamples."""
    line, between = np.linspace(0, 1, 11), np.r_[0, np.ones(9), 0]
    bends = bend + spread * np.random.default_rng(seed).uniform(-1, 1, (400, 1))  # (num_resamples, 1)
    return Curve(router, line + bend * between, line + bends * between)


def measured(bends: dict[str, float], spread: float = 0.0) -> dict[tuple[str, str, str], Curve]:
    """By method, over all tables; methods that are not named have no bend."""
    return {
        (table, method, dataset): curve(method, bends.get(method, 0.0), spread, seed=number)
        for dataset in DATASETS
        for table, rows in ROWS.items()
        for number, method in enumerate(rows)
    }


def verdicts(found: dict[tuple[str, str, str], Curve]) -> dict[tuple[str, str], tuple[str, float]]:
    claims = check_claims(found, EvaluationConfig())
    return {(claim.statement, claim.dataset): (claim.verdict, claim.value) for claim in claims if "Table 1" in claim.section}


def test_the_best_of_ours_is_compared_with_the_best_of_the_others() -> None:
    found = verdicts(measured({"Ours (Hard Block)": 0.1, "Ours (Soft Block)": 0.2, "Hybrid LLM": 0.15, "Margin Sampling": -0.1}))
    verdict, value = found["The better of ours is ahead of every other method", "GSM8K"]
    assert (verdict, value) == ("held", pytest.approx(9 / 11 * 0.05))
    verdict, value = found["Hard Blocking too is ahead of every other method", "TriviaQA"]
    assert (verdict, value) == ("not held", pytest.approx(9 / 11 * -0.05))
    assert found["Margin Sampling is worse than random", "GSM8K"][0] == "held"


def test_nothing_can_be_said_where_the_interval_holds_zero() -> None:
    found = verdicts(measured({"Ours (Soft Block)": 0.02}, spread=0.1))
    assert found["The better of ours is ahead of every other method", "GSM8K"][0] == "can't say"


def test_the_best_is_taken_anew_in_each_resample() -> None:
    """Of equals the best of four is ahead of one in nearly every resample: the interval must know that it was chosen."""
    curves = measured({}, spread=0.1)
    (claim,) = [
        claim
        for claim in check_claims(curves, EvaluationConfig())
        if claim.statement.startswith("The better of ours") and claim.dataset == "GSM8K" and "Table 1" in claim.section
    ]
    of = [curves["table_1", method, "GSM8K"].resamples.mean(axis=1) for method in ROWS["table_1"]]
    expected = np.quantile(np.max(of[4:], axis=0) - np.max(of[:4], axis=0), [0.025, 0.975])
    assert (claim.low, claim.high) == pytest.approx(tuple(expected))


def test_with_a_method_missing_the_best_would_be_another_claim() -> None:
    found = measured({"Ours (Soft Block)": 0.2})
    del found["table_1", "Hybrid LLM", "GSM8K"]
    assert verdicts(found)["The better of ours is ahead of every other method", "GSM8K"][0] == "not measured"
    assert verdicts(found)["The better of ours is ahead of every other method", "TriviaQA"][0] == "held"
