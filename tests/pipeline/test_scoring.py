"""Batch scoring and routing under a budget, on a real actor pool."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from tiny_labels import tiny_labels, write_labels
from tiny_router import write_router

from firewall_ray.config.router import ScoringConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactMissing, ConfigError
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.stages.route import route_file
from firewall_ray.stages.score import run_scoring
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

SCORING = ScoringConfig(device="cpu", batch_size=8)
NUM_QUERIES = 310  # more than two calls of an actor: 16 passes of 8 prompts each


def settings(root: Path) -> dict[str, object]:
    model = {"path": "-"}
    return {
        "root": str(root),
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": model, "strong": model},
        "router": {"designs": ["soft_block", "hard_label"]},
        "scoring": {"device": "cpu", "batch_size": 8, "replicas": {"min": 2, "max": 2}},
    }


@pytest.fixture(scope="module")
def store(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path_factory.mktemp("run")))
    write_labels(store, tiny_labels(200, 50, 60))
    for seed, design in enumerate(("soft_block", "hard_label")):
        write_router(store, design, seed)
    return store


@pytest.fixture
def my_queries(tmp_path: Path) -> Path:
    """Another program's file: questions, a column of its own, one question twice."""
    questions = [f"What is {a} plus {b}?" for a in range(12) for b in range(12)]
    table = pa.table({"question": [*questions, questions[5]], "mine": list(range(145))})
    pq.write_table(table, tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet"


def test_every_query_is_scored_once_by_every_router_as_the_predictor_would(store: ArtifactStore) -> None:
    config = RunConfig.model_validate(settings(Path(store.root)))
    assert run_scoring(config, store)["num_scored"] == NUM_QUERIES
    labels = store.labels().read(["query_id", "prompt"]).to_pandas().sort_values("query_id")
    for design in ("soft_block", "hard_label"):
        # In the order in which two actors were done, which is nobody's.
        scores = store.scores(design).require().read().to_pandas().sort_values("query_id")
        assert scores.query_id.tolist() == labels.query_id.tolist()
        expected = RouterPredictor(store.router(design).path).predict(labels.prompt.tolist())
        np.testing.assert_allclose(scores.p_weak, expected, atol=1e-5)
    assert run_scoring(config, store)["action"] == "skip"


def test_queries_are_scored_where_there_are_no_labels(store: ArtifactStore, tmp_path: Path) -> None:
    alone = ArtifactStore(str(tmp_path))
    shutil.copytree(store.router("soft_block").path, alone.router("soft_block").path)
    table = pa.table(
        {
            "query_id": ["b", "a"],
            "task": ["t"] * 2,
            "split": ["test"] * 2,
            "question": ["x"] * 2,
            "prompt": ["two", "one"],
            "reference": ["{}"] * 2,
        }
    )
    Path(alone.queries().path).mkdir()
    pq.write_table(table, f"{alone.queries().path}/any.parquet")
    config = RunConfig.model_validate({**settings(tmp_path), "router": {"designs": ["soft_block"]}})
    run_scoring(config, alone)
    assert alone.scores("soft_block").read()["query_id"].to_pylist() == ["b", "a"]


def test_scoring_without_a_trained_router_names_the_job(store: ArtifactStore) -> None:
    config = RunConfig.model_validate({**settings(Path(store.root)), "router": {"designs": ["win_rate"]}})
    with pytest.raises(ArtifactMissing, match=r"routers/win_rate.*jobs/train_router\.py"):
        run_scoring(config, store)


@pytest.mark.parametrize(("fraction", "number", "expected"), [(0.3, None, 44), (None, 7, 7), (0.0, None, 0), (1.0, None, 145)])
def test_exactly_the_budget_goes_to_the_strong_model_and_the_order_stays(
    store: ArtifactStore, my_queries: Path, fraction: float | None, number: int | None, expected: int
) -> None:
    out = my_queries.parent / "new" / "routed.parquet"  # 0.3 * 145 = 43.5, and round gives 44
    route_file(store, "soft_block", str(my_queries), str(out), SCORING, strong_fraction=fraction, num_strong=number)
    routed = pd.read_parquet(out)
    assert routed.mine.tolist() == list(range(145))
    assert routed.columns.tolist() == ["question", "mine", "query_id", "p_weak", "route"]
    assert routed.query_id.is_unique
    assert (routed.route == "strong").sum() == expected
    if 0 < expected < 145:
        assert routed.p_weak[routed.route == "strong"].max() <= routed.p_weak[routed.route == "weak"].min()
    prompts = [f"Question: {question}\nAnswer: " for question in routed.question]
    predicted = RouterPredictor(store.router("soft_block").path).predict(prompts)
    np.testing.assert_allclose(routed.p_weak, predicted, atol=1e-5)


def test_a_budget_beyond_the_queries_is_refused_and_leaves_nothing(store: ArtifactStore, my_queries: Path) -> None:
    out = my_queries.parent / "routed.parquet"
    with pytest.raises(ConfigError, match=r"--num-strong 146.*only 145 queries"):
        route_file(store, "soft_block", str(my_queries), str(out), SCORING, num_strong=146)
    assert not out.exists()


def test_the_job_routes_from_the_command_line(store: ArtifactStore, my_queries: Path) -> None:
    config, out = my_queries.parent / "config.yaml", my_queries.parent / "routed.parquet"
    config.write_text(yaml.safe_dump({**settings(Path(store.root)), "ray": {"address": ray.get_runtime_context().gcs_address}}))
    command = [sys.executable, "jobs/score.py", "--config", str(config), "--queries", str(my_queries), "--out", str(out)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--strong-fraction" in refused.stderr
    assert not out.exists()
    done = subprocess.run([*command, "--strong-fraction", "0.2"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["stages"][0]["num_strong"] == 29  # 0.2 * 145
    assert (pd.read_parquet(out).route == "strong").sum() == 29
