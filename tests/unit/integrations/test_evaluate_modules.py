"""The `evaluate` modules, loaded from their folders as a user would, with the network off, against the package's own functions."""

import ast
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from evaluate_scripts import own_caches

from firewall_ray.evaluation.metrics import METRICS
from firewall_ray.evaluation.metrics import evaluate as evaluate_router

MODULES = Path(__file__).parents[3] / "firewall_ray" / "integrations"
NAMES = ("apgr", "gsm8k", "pass_at_k", "triviaqa")

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """`evaluate.load` of a module's folder, with caches of its own, where no connection can be made."""
    with own_caches(tmp_path_factory.mktemp("evaluate")):
        yield lambda name: evaluate.load(str(MODULES / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_and_its_script_are_one_module(load: Load, name: str) -> None:
    assert load(name).features == load(f"{name}/{name}.py").features


@pytest.mark.parametrize("name", NAMES)
def test_what_a_card_shows_comes_out_as_it_says(load: Load, name: str) -> None:
    card = (MODULES / name / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        f"## {each}" for each in ("Description", "How to use", "Inputs", "Output values", "Limitations", "Citation")
    ]
    *_, call, result = card.split("```python\n")[1].split("```")[0].strip().splitlines()
    assert eval(call, {"metric": load(name)}) == ast.literal_eval(result.removeprefix("# "))
    # The same example is the module's own help.
    assert call in load(name).inputs_description


def test_a_wheel_has_the_scripts_and_their_cards() -> None:
    settings = tomllib.loads((MODULES.parents[1] / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["firewall_ray.integrations"]
    carried = {path.relative_to(MODULES) for glob in globs for path in MODULES.glob(glob)}
    assert carried == {Path(name, "README.md") for name in NAMES}
    # What find_packages takes: a folder without it would be left behind.
    assert all((MODULES / name / "__init__.py").is_file() for name in NAMES)


def test_triviaqa_agrees_with_every_golden_case(load: Load, shared_data: Path) -> None:
    cases = json.loads((shared_data / "triviaqa_eval_cases.json").read_text())["cases"]
    found = load("triviaqa").compute(
        predictions=[case["prediction"] for case in cases], references=[case["aliases"] for case in cases]
    )
    assert found["exact_match"] == pytest.approx(np.mean([case["em"] for case in cases]))
    assert found["f1"] == pytest.approx(np.mean([case["f1"] for case in cases]))


def test_gsm8k_agrees_with_every_golden_case(load: Load, shared_data: Path) -> None:
    cases = json.loads((shared_data / "gsm8k_extraction_cases.json").read_text())["cases"]
    found = load("gsm8k").compute(predictions=[case["completion"] for case in cases], references=[case["gold"] for case in cases])
    names = {"official": "official", "strict": "lm_eval_strict", "flexible": "lm_eval_flexible"}
    for rule, name in names.items():
        assert found[rule] == pytest.approx(np.mean([case[f"{name}_correct"] for case in cases]))


def test_pass_at_k_is_the_mean_over_problems(load: Load) -> None:
    # n = 4, c = 1: pass@1 = 1/4, pass@2 = 1 - C(3,2)/C(4,2) = 1/2. n = 2, c = 2: both 1.
    found = load("pass_at_k").compute(predictions=[[True, False, False, False], [True, True]], k=[1, 2])
    assert found == {"pass@1": pytest.approx(0.625), "pass@2": pytest.approx(0.75)}


def test_apgr_has_every_metric_of_the_report_with_the_same_value(load: Load) -> None:
    rng = np.random.default_rng(0)
    weak = rng.integers(0, 9, 50) / 8
    strong = np.minimum(1, weak + rng.integers(0, 9, 50) / 8)
    scores = rng.random(50)
    ids = [str(i) for i in range(50)]
    found = load("apgr").compute(predictions=scores, pass_rate_weak=weak, pass_rate_strong=strong, query_ids=ids, seed=3)
    assert found == evaluate_router(scores, weak, strong, ids, seed=3)
    assert found.keys() == METRICS.keys()


def test_the_library_runs_without_evaluate() -> None:
    """Nothing but the modules imports it when it is itself imported, which takes seconds. Who uses it imports it in a function."""
    package = MODULES.parent
    importing = [
        path
        for path in package.rglob("*.py")
        if any(line.startswith(("import evaluate", "from evaluate")) for line in path.read_text().splitlines())
    ]
    assert {path.relative_to(MODULES) for path in importing} == {Path(name, f"{name}.py") for name in NAMES}
