"""The paper's implied pass rates, against its printed cells; and measured ones beside them, against hand-counted verdicts."""

import logging
import math
from pathlib import Path
from typing import get_args

import pytest
from handmade import grade, make_config, query, write
from pydantic import ValidationError
from rich.console import Console

from firewall_ray.config.baselines import BaselineName
from firewall_ray.config.run import RunConfig
from firewall_ray.paper.names import BASELINE_ROWS
from firewall_ray.paper.show_targets import print_targets
from firewall_ray.paper.targets import PUBLISHED, Compared, check_targets, targets_of, warn_of_distance
from firewall_ray.store.layout import ArtifactStore

# Row Linear Interpolation of Tables 1 and 2: pass rate at 20% and 80% strong calls.
PRINTED = {
    ("Llama-3.2-1B", "triviaqa"): (19.95, 49.99),
    ("Llama-3.2-1B", "gsm8k"): (11.69, 22.62),
    ("Llama-3.2-1B", "humaneval"): (8.12, 12.08),
    ("Llama-3.2-3B", "triviaqa"): (25.75, 51.44),
    ("Llama-3.2-3B", "gsm8k"): (12.60, 22.85),
    ("Llama-3.2-3B", "humaneval"): (10.27, 12.61),
}


def test_the_targets_are_the_ends_of_the_papers_lines() -> None:
    for (weak, task), (at_20, at_80) in PRINTED.items():
        third = (at_80 - at_20) / 3
        # The cells are rounded to 0.01: an end is 4/3 of one less 1/3 of the other, so off by 0.0083 at most, and then rounded.
        assert PUBLISHED[weak][task] == pytest.approx(at_20 - third, abs=0.02)
        assert PUBLISHED["Llama-3.1-70B"][task] == pytest.approx(at_80 + third, abs=0.02)


def config(tmp_path: Path, **paper: object) -> RunConfig:
    return make_config(str(tmp_path), paper=paper)


def test_the_papers_models_are_known_by_their_hub_ids_base_or_instruct() -> None:
    models = {
        "weak": {"path": "meta-llama/Llama-3.2-1B"},
        "middle": {"engine": "openai", "base_url": "http://localhost/v1", "model": "meta-llama/Llama-3.2-3B-Instruct"},
        "strong": {"path": "meta-llama/Meta-Llama-3.1-70B"},
        "other": {"path": "Qwen/Qwen3-8B"},
    }
    found = targets_of(make_config("/r", models=models, paper={"targets": {"other": {"gsm8k": 50}}}))
    weak, middle, strong = (PUBLISHED[name] for name in ("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-70B"))
    assert found == {"weak": weak, "middle": middle, "strong": strong, "other": {"gsm8k": 50}}


def test_targets_of_a_model_that_is_not_there_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"paper\.targets names 'weka', but models has only"):
        make_config("/r", paper={"targets": {"weka": {"gsm8k": 8}}})


def graded(store: ArtifactStore) -> None:
    """Four test queries and one of train, which does not count; one of them has an error."""
    ids = ["a", "b", "c", "d"]
    write(store.queries(), [*(query(i, split="test") for i in ids), query("of_train")])
    rows = [grade("c", "1100"), grade("a", "1111"), grade("b", "0001"), grade("of_train", "0000")]
    write(store.grades("weak"), [*rows, grade("d", None, None, error="broken")])


def test_a_measured_rate_is_the_mean_over_graded_test_queries(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    graded(store)
    (row,) = check_targets(config(tmp_path, targets={"weak": {"tiny_world": 60, "gsm8k": 8}}), store)
    # (1 + 1/4 + 1/2) / 3; deviations 5/12, -1/3, -1/12: variance (25 + 16 + 1) / 144 / 2 = 7/48, over 3 queries
    assert (row.model, row.task, row.num_queries) == ("weak", "tiny_world", 3)
    assert row.measured == pytest.approx(7 / 12)
    assert row.standard_error == pytest.approx(math.sqrt(7 / 48 / 3))
    assert row.difference == pytest.approx(7 / 12 - 0.6)
    assert row.is_near


def test_models_without_targets_or_grades_are_passed_over(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    assert check_targets(config(tmp_path, targets={"weak": {"tiny_world": 60}}), store) == []
    graded(store)
    assert check_targets(config(tmp_path, targets={"strong": {"tiny_world": 60}}), store) == []


def test_past_three_points_a_warning_says_what_to_vary(caplog: pytest.LogCaptureFixture) -> None:
    near, far = Compared("weak", "gsm8k", 0.0994, 0.1294, 0.01, 300), Compared("weak", "triviaqa", 0.0994, 0.2, 0.01, 300)
    with caplog.at_level(logging.WARNING, "firewall_ray"):
        warn_of_distance([near])
        assert not caplog.records
        warn_of_distance([near, far])
    assert "more than 3 points: weak on triviaqa by +10.1. " in caplog.text
    for field in ("sampling.temperature", "sampling.stop", "sampling.max_tokens", "grading", "keep_trailing_space"):
        assert field in caplog.text


def test_rates_are_printed_in_percent_beside_the_papers() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        print_targets([Compared("[b]weak", "triviaqa", 0.0994, 0.2, 0.0123, 300)], console)
        print_targets([], console)
    assert captured.get().splitlines()[-2].split() == ["[b]weak", "triviaqa", "20.00", "1.23", "9.94", "+10.06"]


def test_each_of_the_papers_baseline_rows_has_scores_that_exist() -> None:
    names = set(get_args(BaselineName))
    assert list(BASELINE_ROWS) == ["Hybrid LLM", "RouteLLM (MF)", "Margin Sampling"]  # in the paper's order
    standing = [name for row in BASELINE_ROWS.values() for name in row]
    assert sorted(standing) == sorted(names - {"knn"})
