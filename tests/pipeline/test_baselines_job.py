"""The baselines for real: embeddings and qualities on actor pools, Hybrid LLM's routers by Ray Train, and what a kill costs."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from handmade import query, sample, write
from tiny_labels import tiny_labels, write_labels

from firewall_ray.baselines.embedders import HiddenStates
from firewall_ray.baselines.embeddings import EmbeddingActor
from firewall_ray.baselines.run import describe, run_baselines
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.errors import ArtifactError, SystemFailure
from firewall_ray.evaluation.inputs import read_labels, read_scores
from firewall_ray.router.card import load_card
from firewall_ray.schemas import HYBRID_LABELS, QUALITIES, SCORES
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import parts_of

pytestmark = pytest.mark.slow

WEAK = "quickstart/models/weak"
NAMES = ["margin_sampling", "knn", "routellm_mf", "hybrid_llm_det", "hybrid_llm_prob", "hybrid_llm_trans"]


def settings(root: Path, names: list[str] = NAMES) -> dict[str, Any]:
    model = {"path": WEAK, "device": "cpu"}
    bart = {"path": None, "tokenizer": WEAK, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "epochs": 1, "max_length": 32}
    return {
        "root": str(root),
        "queries": {"tasks": {"tiny_world": {}}},
        "models": {"weak": model, "strong": model},
        "router": {
            "backbone": {"path": None, "tokenizer": WEAK, "hidden_size": 32, "num_layers": 1, "intermediate_size": 32},
            "epochs": 1,
            "batch_size": 16,
            "num_workers": 1,
            "max_length": 64,
            "precision": "fp32",
            "device": "cpu",
        },
        "scoring": {"device": "cpu"},
        "evaluation": {"num_bootstrap": 20},
        "baselines": {
            "names": names,
            "embedding": {"device": "cpu", "max_length": 64},
            "routellm_mf": {"epochs": 3},
            "hybrid_llm": {"epochs": 2},
            "bart_score": {**bart, "device": "cpu"},
        },
    }


def prepared(root: Path) -> ArtifactStore:
    """Labelled queries, and samples that fit their pass rates of 0 and 1: the reference, or something else."""
    store = ArtifactStore(str(root))
    labels = tiny_labels(120, 30, 40)
    write_labels(store, labels)
    rows = labels.to_pylist()
    write(store.queries(), [query(row["query_id"], prompt=row["prompt"], split=row["split"]) for row in rows])
    for number, role in enumerate(("weak", "strong")):
        texts = [["yes", "yes"] if row[f"pass_rate_{role}"] else ["no", f"{number} or not"] for row in rows]
        margins = np.linspace(0, 1, len(rows))
        samples = [sample(r["query_id"], t, t[0], greedy_margin=m) for r, t, m in zip(rows, texts, margins, strict=True)]
        write(store.samples(role), samples)
    return store


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, ArtifactStore, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("run")
    store, config = prepared(root), RunConfig.model_validate(settings(root))
    return config, store, run_baselines(config, store)


def test_every_baseline_scores_every_labelled_query_as_a_router_does(made: Any) -> None:
    _, store, _ = made
    queries, validation_ids = read_labels(store, ["soft_block"])
    for name in NAMES:
        assert store.scores(name).require().read().schema == SCORES
        scores = read_scores(store, name, queries, validation_ids)
        assert len(scores.p_weak) == 40
        assert ((scores.p_weak >= 0) & (scores.p_weak <= 1)).all()
        assert len(scores.calibration) == 30


def test_what_is_finished_is_not_made_again(made: Any) -> None:
    config, store, _ = made
    before = [store.scores(name).identity() for name in NAMES]
    assert {result["action"] for result in run_baselines(config, store)} == {"skip"}
    assert [store.scores(name).identity() for name in NAMES] == before


def test_embeddings_are_the_models_own_and_leave_nothing_else_behind(made: Any) -> None:
    config, store, _ = made
    dataset = store.embeddings("hidden_states_weak").require()
    table = dataset.read().sort_by("query_id")
    prompts = store.labels().read(["query_id", "prompt"]).sort_by("query_id")
    assert table["query_id"] == prompts["query_id"]
    wanted = HiddenStates(Checkpoint.at(WEAK), config.baselines.embedding)(prompts["prompt"].to_pylist())
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=1e-5)
    assert not [path for path in Path(dataset.path).iterdir() if path.name.startswith("_") and path.is_dir()]


def test_hybrid_labels_follow_from_the_qualities_and_routers_from_the_labels(made: Any) -> None:
    _, store, _ = made
    labels = store.baseline("hybrid_llm_labels", HYBRID_LABELS).require().read().to_pylist()
    assert {row["split"] for row in labels} == {"train", "validation"}
    weak, strong = (
        {row["query_id"]: row for row in store.baseline(f"qualities/{key}", QUALITIES).read().to_pylist()}
        for key in ("weak", "strong")
    )
    for row in labels:
        of_weak, of_strong = (table[row["query_id"]] for table in (weak, strong))
        pairs = [w >= s for w in of_weak["qualities"] for s in of_strong["qualities"]]
        assert row["hybrid_llm_prob"] == pytest.approx(np.mean(pairs))
        assert row["hybrid_llm_det"] == (of_weak["qualities"][0] >= of_strong["qualities"][0])
        assert row["hybrid_llm_trans"] >= row["hybrid_llm_prob"]
    assert load_card(store.router("hybrid_llm_prob")).design == "hybrid_llm_prob"
    assert store.router("hybrid_llm_prob").settings()["router"]["epochs"] == 2  # not the section router's


def test_a_failed_actor_pool_goes_on_where_it_stopped(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = prepared(tmp_path), RunConfig.model_validate(settings(tmp_path, ["knn"]))
    monkeypatch.setattr("firewall_ray.cluster.pool.TORCH_BATCH_ROWS", 40)
    with monkeypatch.context() as broken:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
        FailsAfterTheFirstFile.folder = store.embeddings("hidden_states_weak").path
        broken.setattr("firewall_ray.baselines.embeddings.EmbeddingActor", FailsAfterTheFirstFile)
        with pytest.raises(SystemFailure, match="What is done is kept"):
            run_baselines(config, store)
    output = store.embeddings("hidden_states_weak")
    assert output.state() == "unfinished"
    done = vectors(parts_of(output))
    assert 0 < len(done) < 190
    with monkeypatch.context() as counting:
        counting.setattr("firewall_ray.baselines.embeddings.EmbeddingActor", EmbedsElsewhere)
        results = run_baselines(config, store)
    assert [result["action"] for result in results] == ["resume", "run"]
    found = vectors(output)
    assert len(found) == 190
    assert {key for key, vector in found.items() if vector[0] != 7.0} == done.keys()  # kept, not made again


def test_a_limit_keeps_so_many_rows_of_each_split(tmp_path: Path) -> None:
    store, config = prepared(tmp_path), RunConfig.model_validate(settings(tmp_path, ["margin_sampling"]))
    assert run_baselines(config, store, limit=7)[0]["queries"] == 21


def test_labels_without_rows_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    store, config = ArtifactStore(str(tmp_path)), RunConfig.model_validate(settings(tmp_path))
    write_labels(store, tiny_labels(0, 0, 0))
    with pytest.raises(ArtifactError, match=r"labels: .* has no rows"):
        run_baselines(config, store)


def test_tables_name_what_stands_in_for_a_pretrained_model(tmp_path: Path) -> None:
    config = RunConfig.model_validate(settings(tmp_path))
    assert describe("knn", config) == "kNN (weak model's mean hidden states)"
    assert describe("hybrid_llm_prob", config) == "Hybrid LLM (probabilistic, small BART from scratch)"
    assert describe("soft_block", config) == "soft_block"


class FailsAfterTheFirstFile(EmbeddingActor):
    """Embeds one batch; with the next it waits until a file of rows is there, and fails."""

    folder: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        deadline = time.monotonic() + 300
        while getattr(self, "is_used", False) and time.monotonic() < deadline:
            if list(Path(self.folder, "_parts").glob("part-*.parquet")):
                raise RuntimeError("broken on purpose")
            time.sleep(0.1)
        self.is_used = True
        return super().__call__(batch)


class EmbedsElsewhere(EmbeddingActor):
    """Vectors that can be told from the others'."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = super().__call__(batch)
        vectors = [[7.0, *vector[1:]] for vector in table["embedding"].to_pylist()]
        return table.set_column(1, table.schema.field(1), pa.array(vectors, pa.list_(pa.float32())))


def vectors(embeddings: Dataset) -> dict[str, list[float]]:
    return {row["query_id"]: row["embedding"] for row in embeddings.read().to_pylist()}
