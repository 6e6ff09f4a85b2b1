"""Sampling on node groups, and a sampler's node that goes in the middle of it: real engines, real raylets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import Actor, Node, RayNodes, ray_nodes, wait_for

from firewall_ray.config.run import load_config
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.parts import parts_of

pytestmark = [pytest.mark.slow, pytest.mark.long]

NUM_QUERIES = 480
BATCH = 16
SAMPLER = "VllmSampler"


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A node for Ray Data's own tasks; those for engines come with the test."""
    with ray_nodes() as nodes:
        nodes.add(num_cpus=4)
        yield nodes


def prepared(folder: Path) -> tuple[Path, ArtifactStore]:
    """A config of a weak model with two engines and a strong one with one, each on its group of nodes; and its queries."""
    model = {"device": "cpu", "dtype": "float32", "engine_kwargs": {"enforce_eager": True}}
    raw = {
        "root": str(folder / "run"),
        "queries": {"tasks": {"tiny_world": {"num_train": NUM_QUERIES, "num_validation": 0, "num_test": 0, "seed": 11}}},
        "models": {
            "weak": {**model, "path": "quickstart/models/weak", "node_resource": "spot", "replicas": {"min": 2, "max": 2}},
            "strong": {**model, "path": "quickstart/models/strong", "node_resource": "large"},
        },
        "sampling": {"num_samples": 8, "batch_size": BATCH, "num_batches_in_flight": 2},
    }
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(json.dumps(raw))
    config = load_config(path)
    store = ArtifactStore(config.root)
    run_prepare_queries(config, store)
    return path, store


def num_done(store: ArtifactStore, model: str) -> int:
    return parts_of(store.samples(model)).num_rows()


def alive(nodes: RayNodes) -> list[Actor]:
    return [actor for actor in nodes.actors(SAMPLER) if actor.state == "ALIVE"]


def rows(store: ArtifactStore, model: str) -> dict[str, dict[str, Any]]:
    """By query. Fails where a query comes twice."""
    table = store.samples(model).read().to_pylist()
    found = {row["query_id"]: row for row in table}
    assert len(found) == len(table)
    return found


def test_a_samplers_node_killed_in_the_middle_costs_no_row_and_repeats_none(nodes: RayNodes, tmp_path: Path) -> None:
    spot: list[Node] = [nodes.add(num_cpus=2, spot=1) for _ in range(2)]
    large = nodes.add(num_cpus=2, large=1)
    config, store = prepared(tmp_path / "disturbed")
    job = nodes.job("sample", "--config", str(config), log=tmp_path / "log")
    try:
        engines = wait_for(lambda: len(found := alive(nodes)) == 3 and found, "three engines run", job)
        # Every engine is where its model's group is: two of the weak model, one of the strong. Both weak ones may share a node.
        weak_on, strong_on = ([each.node_id for each in engines if group in each.resources] for group in ("spot", "large"))
        assert (len(weak_on), strong_on) == (2, [large.node_id])
        assert set(weak_on) <= {node.node_id for node in spot}
        victim, survivor = sorted(spot, key=lambda node: node.node_id not in weak_on)

        wait_for(lambda: num_done(store, "weak") >= 4 * BATCH, "some rows are written", job)
        nodes.kill(victim)
        done = num_done(store, "weak")
        assert done < NUM_QUERIES
        replacement = nodes.add(num_cpus=2, spot=1)
        assert job.wait(240) == 0, (tmp_path / "log").read_text()[-4_000:]
    finally:
        job.kill()
    # Ray makes the engine that went down again, on a node of its group; where the others were faster its record stays where it was.
    remaining = {node.node_id for node in [survivor, replacement, large]}
    assert {engine.node_id for engine in nodes.actors(SAMPLER)} - {victim.node_id} <= remaining
    (line,) = (tmp_path / "log").read_text().splitlines()[-1:]
    assert [(stage["num_rows"], stage["num_errors"]) for stage in json.loads(line)["stages"]] == [(NUM_QUERIES, 0)] * 2

    config, undisturbed = prepared(tmp_path / "undisturbed")
    one_engine = ["--set", "models.weak.replicas={min: 1, max: 1}"]
    job = nodes.job("sample", "--config", str(config), "--model", "weak", *one_engine, log=tmp_path / "log2")
    assert job.wait(240) == 0, (tmp_path / "log2").read_text()[-4_000:]
    queries = {row["query_id"] for row in store.queries().read().to_pylist()}
    found, expected = rows(store, "weak"), rows(undisturbed, "weak")
    assert found.keys() == expected.keys() == rows(store, "strong").keys() == queries
    for query_id, row in found.items():
        assert len(row["texts"]) == 8
        if expected[query_id]["greedy_margin"] > 1e-3:  # else a batch of another size may break a tie differently
            assert row["greedy_text"].split()[:1] == expected[query_id]["greedy_text"].split()[:1]
