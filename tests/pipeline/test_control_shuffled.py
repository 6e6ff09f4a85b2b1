"""The shuffled control for real: the run's own training, on labels in which there is nothing to learn."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_router_training import settings
from tiny_labels import tiny_labels, write_labels

from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.metrics import apgr
from firewall_ray.router.card import load_card
from firewall_ray.stages.control_shuffled import ControlStore, run_control_shuffled
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow


def test_training_on_shuffled_labels_gives_a_coin_on_queries_that_can_be_told_apart(ray_cluster: None, tmp_path: Path) -> None:
    labels, store = tiny_labels(300, 60, 300), ArtifactStore(str(tmp_path))
    write_labels(store, labels)
    config = RunConfig.model_validate(settings(tmp_path, epochs=3, num_workers=1) | {"scoring": {"device": "cpu"}})
    assert [result["action"] for result in run_control_shuffled(config, store)] == ["run"] * 3
    scores = pq.read_table(tmp_path / "scores" / "control_shuffled").to_pandas()
    test = labels.to_pandas().query("split == 'test'").merge(scores, on="query_id")
    assert len(scores) == 660
    # True labels give above 0.8 here. A shuffled training is a coin from permutation to permutation: each still prefers some words.
    found = apgr(test["p_weak"], test["pass_rate_weak"], test["pass_rate_strong"], test["prompt"].tolist())
    assert 0.3 < found < 0.7
    # Not where a router to serve is looked for.
    assert store.children("routers") == []
    assert load_card(ControlStore(str(tmp_path)).router("control_shuffled")).num_train == 300
    assert [result["action"] for result in run_control_shuffled(config, store)] == ["skip"] * 3
