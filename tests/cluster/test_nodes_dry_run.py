"""The dry run on a Ray with a node of 8 GPUs, named as Ray names them; no GPU has to exist to be counted."""

import pytest
import ray
from ray_nodes import ray_nodes

from firewall_ray.config.run import load_config
from firewall_ray.paper.described import running_cluster
from firewall_ray.paper.dry_run import Finding, dry_run
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow


def walked(address: str, root: str, *overrides: str) -> list[Finding]:
    """In a driver. The sandbox without isolation: whether this machine allows namespaces is not what is tested."""
    ray.init(address=address, log_to_driver=False)
    config = load_config("jobs/configs/paper.yaml", ["grading.humaneval.isolation=unsafe", *overrides], root=root)
    return dry_run(config, ArtifactStore(config.root), running_cluster())


def test_the_papers_config_fits_a_node_as_ray_registers_it_and_a_type_that_no_node_has_does_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = str(tmp_path_factory.mktemp("dry"))
    with ray_nodes() as nodes:
        nodes.add(num_cpus=96, num_gpus=8, **{"accelerator_type:A100": 1})
        right = nodes.in_driver(walked, root)
        assert [finding for finding in right if finding.state == "wrong"] == []
        assert [finding.state for finding in right if finding.what == "sandbox"] == ["ok"]
        (wrong,) = [f for f in nodes.in_driver(walked, root, "router.accelerator_type=A100-80G") if f.state == "wrong"]
    assert "router: training takes 8 x" in wrong.words
    assert "ask for A100 (router.accelerator_type)" in wrong.words
