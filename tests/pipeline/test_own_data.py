"""A user's own data through the stages, on a real local Ray: a grader of theirs, and outcomes that they bring."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from handmade import make_config, sample, write

from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.table import load_report
from firewall_ray.stages.grade import run_grading
from firewall_ray.stages.import_outcomes import run_import
from firewall_ray.stages.label import run_labeling
from firewall_ray.stages.prepare_queries import read_queries, run_prepare_queries
from firewall_ray.stages.report import run_report
from firewall_ray.stages.score import run_scoring
from firewall_ray.stages.train_router import run_training
from firewall_ray.store.layout import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_a_function_named_in_the_config_grades_in_ray_tasks(tmp_path: Path) -> None:
    """A function of the standard library, so that every worker can import it: fnmatch's (text, pattern) -> bool."""
    rows = [{"question": f"What is {i}?", "answer": f"*{i}*"} for i in range(8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": str(tmp_path / "own.jsonl"), "grader": "fnmatch:fnmatchcase"}
    config = make_config(str(tmp_path / "root"), queries={"tasks": {"custom": {"own": task}}})
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    queries = read_queries(store).read().to_pylist()
    samples = [sample(q["query_id"], [q["question"], "-"], "-", task="own") for q in queries]
    write(store.samples("weak"), samples)
    (result,) = run_grading(config, store, models=["weak"])
    assert (result["rows"], result["errors"]) == (8, 0)
    for row in store.grades("weak").read().to_pylist():
        assert (row["correct"], row["greedy_correct"]) == ([True, False], False)


def config_with_outcomes(root: Path, path: Path) -> RunConfig:
    router: dict[str, Any] = {
        "designs": ["soft_block"],
        "backbone": {"path": None, "tokenizer": "quickstart/models/weak", "hidden_size": 32, "num_layers": 1},
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "max_length": 32,
        "precision": "fp32",
        "zero_stage": 0,
        "num_workers": 1,
        "device": "cpu",
    }
    sections = {"router": router, "scoring": {"device": "cpu"}, "evaluation": {"num_bootstrap": 100}}
    return make_config(str(root), queries={"outcomes": {"path": str(path), "models": {"weak": "a", "strong": "b"}}}, **sections)


def test_a_router_is_trained_scored_and_reported_on_outcomes_alone(tmp_path: Path) -> None:
    """Questions about cats need the strong model, those about dogs do not; the router has to find that in the text."""
    rng = random.Random(0)
    rows = []
    for i in range(400):
        animal = rng.choice(["cat", "dog"])
        question = f"How old is the {animal} of number {i}?"
        rows += [
            {"query": question, "model": "a", "correct": int(animal == "dog")},
            {"query": question, "model": "b", "correct": 1},
        ]
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_with_outcomes(tmp_path / "root", path)
    store = ArtifactStore(config.root)
    run_import(config, store)
    assert run_labeling(config, store)["labels"] == 400
    run_training(config, store)
    run_scoring(config, store)
    run_report(config, store)
    found = load_report(store.report())["routers"]
    # The label follows from the animal without exception, so the ranking is the oracle's.
    assert found["soft_block"]["outcomes"]["apgr"] == found["oracle"]["outcomes"]["apgr"]
    assert found["soft_block"]["outcomes"]["apgr"]["low"] > 0.5
