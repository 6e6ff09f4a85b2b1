"""The `evaluate` modules, loaded from their files as a user would, with the network off, against the package's own functions."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firewall_ray.evaluation.metrics import METRICS
from firewall_ray.evaluation.metrics import evaluate as evaluate_router

evaluate = pytest.importorskip("evaluate")
MODULES = Path(__file__).parents[3] / "firewall_ray" / "integrations"

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """`evaluate.load` of a module's file, with caches of its own, where no connection can be made."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    cache = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.syspath_prepend(cache / "modules")
        yield lambda name: evaluate.load(str(MODULES / f"{name}.py"), cache_dir=str(cache / "data"))


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
    """Nothing but the modules imports it: it is slow to import, and an extra."""
    package = MODULES.parent
    importing = [
        path
        for path in package.rglob("*.py")
        if any(line.startswith(("import evaluate", "from evaluate")) for line in path.read_text().splitlines())
    ]
    assert {path.parent for path in importing} == {MODULES}
    assert len(importing) == 4
