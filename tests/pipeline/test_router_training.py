"""Ray Train and DeepSpeed for real: what training leaves behind, and what it survives."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.util.placement_group import placement_group, remove_placement_group
from tiny_labels import tiny_labels, write_labels
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from firewall_ray.cluster import room
from firewall_ray.cluster.progress import watch
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ArtifactError, ConfigError, ModelError
from firewall_ray.router.card import load_card
from firewall_ray.router.predict import RouterPredictor
from firewall_ray.stages.train_router import CHECKPOINTS_FOLDER, run_training
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

BACKBONE = {"path": None, "tokenizer": "quickstart/models/weak", "hidden_size": 64, "num_layers": 1, "intermediate_size": 64}


def settings(root: Path, **router: Any) -> dict[str, Any]:
    model = {"path": "quickstart/models/weak", "device": "cpu"}
    defaults = {
        "designs": ["soft_block", "weak_pass_rate"],
        "backbone": BACKBONE,
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "max_length": 64,
        "precision": "fp32",
        "num_workers": 2,
        "device": "cpu",
    }
    return {
        "root": str(root),
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": model, "strong": model},
        "router": {**defaults, **router},
        "evaluation": {"num_bootstrap": 50},
    }


def prepared(root: Path, num_train: int = 301, num_validation: int = 41, **router: Any) -> tuple[RunConfig, ArtifactStore]:
    """301 rows over 2 workers in batches of 8: an odd row out, and a last batch of 6."""
    store = ArtifactStore(str(root))
    write_labels(store, tiny_labels(num_train, num_validation))
    return RunConfig.model_validate(settings(root, **router)), store


def saved_progress(root: Path) -> dict[str, Any] | None:
    """What the newest whole checkpoint says."""
    for snapshot in root.glob(f"{CHECKPOINTS_FOLDER}/*/checkpoint_manager_snapshot.json"):
        try:
            newest = json.loads(snapshot.read_text())["latest_checkpoint_result"]
            folder = snapshot.parent / newest["checkpoint_dir_name"]
            return json.loads((folder / "progress.json").read_text())
        except (OSError, ValueError, TypeError, KeyError):  # just being replaced
            return None
    return None


def wait_for(condition: Callable[[], Any], timeout_s: float = 300) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError("waited in vain")


PROGRESS: dict[str, Any] = {}  # of `trained`, as its watch left it


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, ArtifactStore, dict[str, Any]]:
    @contextmanager
    def watched(stage: str, totals: dict[str, int], done: dict[str, int]) -> Iterator[Any]:
        with watch(stage, totals, done) as counter:
            yield counter
            PROGRESS.update(totals=totals, done=done, sums=ray.get(counter.read.remote())[0])

    config, store = prepared(tmp_path_factory.mktemp("run"), epochs=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firewall_ray.stages.train_router.watch", watched)
        return config, store, run_training(config, store)


def test_progress_counts_every_row_of_training_and_validation(trained: Any) -> None:
    # 301 rows over two workers leave one out; 41 more are validated on: 6 x (300 + 41) of each design.
    assert PROGRESS["totals"] == {"soft_block": 2_046, "weak_pass_rate": 2_046}
    assert {design: sums["rows"] for design, sums in PROGRESS["sums"].items()} == PROGRESS["totals"]
    assert PROGRESS["done"] == {}


def test_training_leaves_a_hugging_face_folder_for_every_design(trained: Any) -> None:
    _, store, result = trained
    assert result["action"] == "run"
    assert result["num_trained"] == 2
    for design in ("soft_block", "weak_pass_rate"):
        folder = store.router(design).require().path
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1
        assert AutoTokenizer.from_pretrained(folder).pad_token is not None
        assert load_card(store.router(design)).design == design


def test_the_card_tells_what_was_measured(trained: Any) -> None:
    config, store, _ = trained
    card = load_card(store.router("soft_block"))
    assert [epoch.epoch for epoch in card.history] == [1, 2, 3, 4, 5, 6]
    losses = [epoch.validation_bce for epoch in card.history]
    assert card.best_epoch == 1 + int(np.argmin(losses))
    # The kept weights, scored again, have the loss that their epoch reported.
    assert card.validation["bce"].value == pytest.approx(min(losses), abs=1e-4)
    assert card.validation["apgr"].low <= card.validation["apgr"].value <= card.validation["apgr"].high
    assert (card.num_train, card.num_validation) == (300, 41)  # 301 rows over 2 workers leave one out
    assert card.quantiles.num_scores == 41
    assert card.training == config.router


def test_the_router_learns_and_a_design_learns_its_own_label(trained: Any) -> None:
    _, store, _ = trained
    history = load_card(store.router("soft_block")).history
    assert history[-1].train_bce < history[0].train_bce - 0.1
    scores = {}
    for design in ("soft_block", "weak_pass_rate"):
        table = pq.read_table(f"{store.router(design).path}/_validation.parquet").to_pandas()
        # Hard queries, which no model solves, are worth the weak model to soft_block (label 1), not to weak_pass_rate (0).
        scores[design] = table.p_weak[table.pass_rate_strong == 0].mean()
    assert scores["soft_block"] > scores["weak_pass_rate"] + 0.2


def test_validation_covers_every_query_once_and_with_the_scores_of_the_predictor(trained: Any) -> None:
    _, store, _ = trained
    validation = pq.read_table(f"{store.router('soft_block').path}/_validation.parquet").to_pandas().set_index("query_id").p_weak
    labels = store.labels().read(["query_id", "split", "prompt"]).to_pandas()
    labels = labels[labels.split == "validation"]
    assert sorted(validation.index) == sorted(labels.query_id)
    p_weak = RouterPredictor(store.router("soft_block").path).predict(labels.prompt.tolist())
    np.testing.assert_allclose(validation[labels.query_id], p_weak, atol=1e-5)


def test_loss_and_learning_rate_of_every_step_are_in_the_event_files(trained: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the writer that made the files)

    _, store, _ = trained
    steps: dict[str, list[int]] = {}
    for path in sorted(Path(store.router("soft_block").path, "_tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
            at += 16 + length
    per_epoch = 19  # 150 rows a worker in batches of 8: 18.75
    assert steps["loss"] == steps["learning_rate"] == list(range(1, 6 * per_epoch + 1))
    assert steps["validation_bce"] == [epoch * per_epoch for epoch in range(1, 7)]


def test_finished_routers_are_not_trained_again_and_leave_no_checkpoints(trained: Any) -> None:
    config, store, _ = trained
    before = load_card(store.router("soft_block"))
    result = run_training(config, store)
    assert (result["action"], result["num_trained"]) == ("skip", 0)
    assert load_card(store.router("soft_block")) == before
    assert not list(Path(store.base, CHECKPOINTS_FOLDER).iterdir())


def test_other_settings_do_not_overwrite_a_finished_router(trained: Any) -> None:
    config, store, _ = trained
    other = config.model_copy(update={"router": config.router.model_copy(update={"learning_rate": 1.0})})
    with pytest.raises(ArtifactError, match="made with other settings"):
        run_training(other, store)


def test_a_wrong_backbone_or_batch_is_refused_before_anything_is_begun(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, num_train=20, num_validation=5, batch_size=15)
    with pytest.raises(ConfigError, match=r"router\.batch_size is 15"):
        run_training(config, store)
    config, store = prepared(tmp_path, num_train=20, num_validation=5, backbone={"path": "nowhere/at/all"})
    with pytest.raises(ModelError, match=r"router\.backbone\.path"):
        run_training(config, store)
    assert not (tmp_path / "routers").exists()


def test_a_killed_worker_costs_at_most_one_epoch(ray_cluster: None, tmp_path: Path) -> None:
    config, store = prepared(tmp_path, designs=["soft_block"], epochs=8, max_failures=1, zero_stage=2)
    killed: dict[str, Any] = {}

    def kill_one_worker() -> None:
        killed["after"] = wait_for(lambda: saved_progress(tmp_path))
        processes = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        killed["pid"] = processes[-1].pid
        os.kill(killed["pid"], signal.SIGKILL)

    assassin = threading.Thread(target=kill_one_worker)
    assassin.start()
    run_training(config, store)
    assassin.join()
    history = [epoch.model_dump() for epoch in load_card(store.router("soft_block")).history]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5, 6, 7, 8]
    # Epochs trained before the death were kept, not trained again: even their measured speed is the same.
    kept = killed["after"]["history"]
    assert 1 <= len(kept) < 8
    assert history[: len(kept)] == kept


def test_a_killed_driver_goes_on_where_it_stopped_with_other_workers_too(ray_cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    config, store = prepared(root, designs=["soft_block", "hard_label"], epochs=6)
    file = tmp_path / "config.yaml"
    address = ray.get_runtime_context().gcs_address
    file.write_text(yaml.safe_dump({**settings(root, designs=["soft_block", "hard_label"], epochs=6), "ray": {"address": address}}))
    command = [sys.executable, "jobs/train_router.py", "--config", str(file)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = wait_for(lambda: (p := saved_progress(root)) and len(p["history"]) >= 2 and p)
    driver.kill()
    driver.wait()
    assert store.router("soft_block").state() == "unfinished"
    # It began on two workers, which share weights' gradients and moments; it goes on with one that has them all.
    done = run_training(
        config.model_copy(update={"router": config.router.model_copy(update={"num_workers": 1, "zero_stage": 0})}), store
    )
    assert done["action"] == "resume"
    history = [epoch.model_dump() for epoch in load_card(store.router("soft_block")).history]
    assert history[: len(before["history"])] == before["history"]
    assert len(history) == 6
    assert history[-1]["train_bce"] < before["history"][-1]["train_bce"]
    assert len(load_card(store.router("hard_label")).history) == 6


def test_few_rows_and_a_causal_backbone_train_with_zero_3_too_and_a_wait_for_other_jobs_is_said(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "FIRST_WORD_AFTER_S", 1.0)
    monkeypatch.setattr(logging.getLogger("firewall_ray"), "propagate", True)
    num_cpus = int(ray.cluster_resources()["CPU"])
    others = placement_group([{"CPU": num_cpus - 1}])  # two workers would fit, were it not for them
    ray.get(others.ready())

    def give_way() -> None:
        try:
            wait_for(lambda: "waiting for room" in caplog.text)
        finally:
            remove_placement_group(others)  # whatever happened: the tests after this one need the room

    backbone = {"path": "quickstart/models/weak"}
    # 12 rows are less than one batch: they must not be dropped as an incomplete one.
    router = {"designs": ["soft_block"], "epochs": 1, "batch_size": 48, "zero_stage": 3, "backbone": backbone}
    config, store = prepared(tmp_path, 12, 7, **router)
    thread = threading.Thread(target=give_way)
    with caplog.at_level("INFO", logger="firewall_ray"):
        thread.start()
        run_training(config, store)
        thread.join()
    taken = f"router: training takes 2 x (1 CPU), each on one node. Free now: 1 x (1 CPU); in all: 1 x ({num_cpus} CPU)."
    assert taken in caplog.text
    assert "router: training began after" in caplog.text
    card = load_card(store.router("soft_block"))
    assert card.num_train == 12
    assert card.validation["bce"].value == pytest.approx(card.history[0].validation_bce, abs=1e-4)
