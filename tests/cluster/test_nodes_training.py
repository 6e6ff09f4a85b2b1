"""Two training workers on two nodes, one of which goes in the middle."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray_nodes import RayNodes, ray_nodes, wait_for
from tiny_labels import tiny_labels, write_labels

from firewall_ray.router.card import load_card
from firewall_ray.stages.train_router import CHECKPOINTS_FOLDER
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

EPOCHS = 6
NUM_TRAIN = 2_000  # more than Ray keeps beside its own records: the rows lie in the object stores of nodes
NUM_VALIDATION = 101


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    # Nodes that `ray up` starts have it, and a training waits for more of them; on others it would be refused.
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "cpu")
    with ray_nodes() as nodes:
        yield nodes


def write_config(folder: Path) -> Path:
    model = {"path": "quickstart/models/weak", "device": "cpu"}
    backbone = {"path": None, "tokenizer": "quickstart/models/weak", "hidden_size": 64, "num_layers": 1, "intermediate_size": 64}
    router = {
        "designs": ["soft_block"],
        "backbone": backbone,
        "epochs": EPOCHS,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "max_length": 64,
        "precision": "fp32",
        "num_workers": 2,
        "device": "cpu",
    }
    raw = {
        "root": str(folder / "run"),
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": model, "strong": model},
        "router": router,
        "evaluation": {"num_bootstrap": 50},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(raw))
    return path


def history_so_far(store: ArtifactStore) -> list[dict[str, Any]]:
    """Of the newest whole checkpoint."""
    for snapshot in Path(store.base).glob(f"{CHECKPOINTS_FOLDER}/*/checkpoint_manager_snapshot.json"):
        try:
            newest = json.loads(snapshot.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
            return list(json.loads((snapshot.parent / newest / "progress.json").read_text())["history"])
        except (OSError, ValueError, TypeError, KeyError):  # just being replaced
            return []
    return []


def workers_on(nodes: RayNodes) -> set[str]:
    """Ids of the nodes where training workers run."""
    return {actor.node_id for actor in nodes.actors("RayTrainWorker") if actor.state == "ALIVE"}


def test_a_node_with_a_training_worker_and_the_rows_killed_in_the_middle_costs_at_most_one_epoch(
    nodes: RayNodes, tmp_path: Path
) -> None:
    first = nodes.add(num_cpus=1)  # one CPU a node: two workers cannot share one
    store = ArtifactStore(str(tmp_path / "run"))
    write_labels(store, tiny_labels(NUM_TRAIN, NUM_VALIDATION))
    job = nodes.job("train_router", "--config", str(write_config(tmp_path)), log=tmp_path / "log")
    try:
        wait_for(lambda: nodes.actors("TrainController"), "the rows are tokenised, all on the first node", job)
        second = nodes.add(num_cpus=1)
        wait_for(lambda: workers_on(nodes) == {first.node_id, second.node_id}, "there is a worker on each", job)
        nodes.add(num_cpus=1)  # for Ray Data, which splits the rows
        kept = wait_for(lambda: history_so_far(store), "an epoch is over", job)
        nodes.kill(first)
        # The workers start on the two that are left; the lost rows are made again on the one that comes.
        nodes.add(num_cpus=1)
        assert job.wait(240) == 0, (tmp_path / "log").read_text()[-4_000:]
    finally:
        job.kill()
    card = load_card(store.router("soft_block").require())
    history = [epoch.model_dump() for epoch in card.history]
    assert [epoch["epoch"] for epoch in history] == list(range(1, EPOCHS + 1))
    # What was trained before was kept, not trained again: even its measured speed is the same.
    assert 1 <= len(kept) < EPOCHS
    assert history[: len(kept)] == kept
    assert "resuming soft_block after epoch" in (tmp_path / "log").read_text()
    # And what came after it is training: on all rows, not on those that were not lost.
    assert card.num_train == NUM_TRAIN
    assert history[-1]["train_bce"] < history[0]["train_bce"]
    validation = pq.read_table(f"{store.router('soft_block').path}/_validation.parquet")
    assert validation.num_rows == len(validation["query_id"].unique()) == NUM_VALIDATION
    assert all(math.isfinite(score) for score in validation["p_weak"].to_pylist())
