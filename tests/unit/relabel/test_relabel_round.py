"""A round as a whole: what it takes of the cluster, what it trains from, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from handmade import make_config, write
from relabel_parts import chat, finish_labels, label, log, put_router, serve_file

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.relabel.run import at_low_priority, is_of_other_labels, run_relabel, training_config
from firewall_ray.relabel.stores import router_name
from firewall_ray.router.card import CARD_FILE
from firewall_ray.store.layout import ArtifactStore


def test_sampling_takes_as_few_engines_and_requests_as_the_config_says(tmp_path: Path) -> None:
    replicas = {"min": 2, "max": 8}
    bought = {"engine": "openai", "base_url": "http://x/v1", "model": "m", "max_concurrency": 32, "replicas": replicas}
    models = {"weak": {"path": "-", "replicas": replicas}, "strong": bought, "middle": {"path": "-", "replicas": replicas}}
    config = at_low_priority(make_config(str(tmp_path), models=models, relabel={"num_samples": 3}))
    assert [config.models[key].replicas.max for key in ("weak", "strong", "middle")] == [1, 1, 8]
    assert config.models["strong"].max_concurrency == 4  # type: ignore[union-attr]
    assert config.sampling.num_samples == 3
    assert [config.models[key].node_resource for key in ("weak", "strong", "middle")] == [None, None, None]
    apart = make_config(str(tmp_path), models=models, relabel={"node_resource": "spare"})
    assert [at_low_priority(apart).models[key].node_resource for key in ("weak", "strong", "middle")] == ["spare", "spare", None]
    modest = {**bought, "max_concurrency": 2}
    assert at_low_priority(make_config(str(tmp_path), models={**models, "strong": modest})).models["strong"].max_concurrency == 2  # type: ignore[union-attr]


def test_training_goes_on_from_the_router_in_service_unless_told_otherwise(config: RunConfig, store: ArtifactStore) -> None:
    warm = training_config(config, store, "hard_block-april", "hard_block").router
    assert (warm.backbone.path, warm.designs) == (store.router("hard_block-april").path, ["hard_block"])
    cold = make_config(store.root, relabel={"warm_start": False})
    assert training_config(cold, store, "hard_block-april", "hard_block").router.backbone == cold.router.backbone


def test_a_router_of_labels_that_have_grown_since_is_trained_anew(store: ArtifactStore) -> None:
    labels, router = store.labels(), store.router("soft_block-may")
    finish_labels(store, [label("a", "A")])
    assert not is_of_other_labels(router, labels)  # there is none
    router.begin({"labels": labels.identity()})
    router.finish({}, {})
    assert not is_of_other_labels(router, labels)
    finish_labels(store, [label("a", "A"), label("b", "B")])
    assert is_of_other_labels(router, labels)


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 60, "may\n"])
def test_a_round_whose_name_is_no_folder_or_too_long_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        router_name("soft_block", name)


@pytest.mark.parametrize(
    ("in_service", "fields", "named"),
    [
        ("soft_block-may", {}, "the router of the round may, is in service already"),
        ("bart", {"design": "hybrid_llm_det"}, "learnt 'hybrid_llm_det', which labels/ does not have"),
        ("soft_block", {"weak": {"key": "middle", "path": "x"}}, "the router soft_block is for middle and strong"),
    ],
)
def test_a_round_that_could_replace_nothing_is_refused_before_anything_is_drawn(
    config: RunConfig, store: ArtifactStore, in_service: str, fields: dict[str, Any], named: str
) -> None:
    put_router(store, in_service)
    deployments = [{"name": "Router", "user_config": {"router": in_service, "strong_fraction": 0.3}}]
    card = json.loads(store.router(in_service).read_bytes(CARD_FILE))
    store.router(in_service).write_bytes(CARD_FILE, json.dumps({**card, **fields}).encode())
    log(store, chat("A?"))
    write(store.labels(), [label("q", "p")])
    with pytest.raises(ConfigError, match=named):
        next(iter(run_relabel(config, store, "may", serve_file(config, deployments=deployments))))
    assert store.children("relabel") == []
