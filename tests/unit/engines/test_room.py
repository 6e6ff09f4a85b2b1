"""An engine that no node could hold is refused in words, not waited for."""

import logging
from typing import Any

import pytest
import ray

from firewall_ray.cluster.room import fits
from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.engines.room import check_room, engine_parts
from firewall_ray.errors import ConfigError

SMALL, LARGE = {"CPU": 32.0, "GPU": 4.0}, {"CPU": 96.0, "GPU": 8.0}


def model(**settings: Any) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": "m", **settings})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Its nodes, as Ray lists them; a test adds some."""
    nodes: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    return nodes


def node(resources: dict[str, float], alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {**resources, "memory": 1e9}, "Labels": labels}


def test_tensor_parallelism_takes_one_node_and_pipeline_stages_may_take_several() -> None:
    # 8 workers of a CPU each, and the actor's own.
    assert engine_parts(model(tensor_parallel_size=8)) == [{"GPU": 8, "CPU": 9}]
    assert engine_parts(model(tensor_parallel_size=2, pipeline_parallel_size=2)) == [
        {"GPU": 1, "CPU": 2},
        *[{"GPU": 1, "CPU": 1}] * 3,
    ]
    assert engine_parts(model(num_cpus=3, accelerator_type="L4")) == [{"GPU": 1, "CPU": 3, "accelerator_type:L4": 0.001}]
    assert engine_parts(model(device="cpu", num_cpus=2, node_resource="spot")) == [{"CPU": 2, "spot": 0.001}]
    assert engine_parts(OpenAIModelConfig(engine="openai", base_url="http://x/v1", model="y")) == [{"CPU": 0.1}]


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        ({"tensor_parallel_size": 4}, [SMALL, SMALL], True),
        ({"tensor_parallel_size": 8}, [SMALL, SMALL], False),
        ({"tensor_parallel_size": 8}, [SMALL, LARGE], True),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, [SMALL, SMALL], True),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, [SMALL], False),
        ({"tensor_parallel_size": 8}, [{"CPU": 8, "GPU": 8}], False),  # a ninth CPU for the actor
        ({"accelerator_type": "L4"}, [LARGE], False),
        ({"node_resource": "spot"}, [LARGE], False),
        ({"node_resource": "spot"}, [{**LARGE, "spot": 1}], True),
        ({"device": "cpu"}, [{"CPU": 1}], True),
        ({}, [], False),
    ],
)
def test_whether_an_engine_fits(settings: dict[str, Any], nodes: list[dict[str, float]], expected: bool) -> None:
    assert fits(engine_parts(model(**settings)), nodes) is expected


def test_the_refusal_says_what_is_asked_what_is_there_and_what_to_change(cluster: list[dict[str, Any]]) -> None:
    cluster += [node(SMALL), node(SMALL), node({"CPU": 0.0}), node(LARGE, alive=False)]
    with pytest.raises(ConfigError) as caught:
        check_room("strong", model(tensor_parallel_size=8))
    asked, _, way_out = str(caught.value).partition(" It would wait for ever")
    assert asked == (
        "models.strong: an engine takes 1 x (8 GPU, 9 CPU), each on one node, and the cluster's nodes are 2 x (4 GPU, 32 CPU)."
    )
    assert "start nodes" in way_out
    assert "models.strong.num_cpus, models.strong.node_resource, models.strong.tensor_parallel_size" in way_out


def test_a_machine_without_a_gpu_is_told_of_the_device(cluster: list[dict[str, Any]]) -> None:
    cluster.append(node({"CPU": 8.0}))
    with pytest.raises(ConfigError, match=r"the cluster's nodes are 1 x \(0 GPU, 8 CPU\)\..*models.weak.device\)"):
        check_room("weak", model())
    check_room("weak", model(device="cpu"))


def test_where_an_autoscaler_may_bring_a_node_it_is_waited_for(
    cluster: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.append(node({"CPU": 0.0}, **{"ray.io/node-group": "head"}))
    with caplog.at_level(logging.WARNING):
        check_room("strong", model(tensor_parallel_size=8))
    assert "models.strong: an engine takes 1 x (8 GPU, 9 CPU)" in caplog.text
    assert "the cluster's nodes are without any of it. Waiting for the autoscaler" in caplog.text
