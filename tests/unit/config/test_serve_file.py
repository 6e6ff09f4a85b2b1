"""Serve's config file with another router in it."""

from pathlib import Path

import pytest
import yaml
from handmade import make_config
from relabel_parts import serve_file, user_config

from firewall_ray.config.run import RunConfig
from serve_app.routing.arms import RouterUserConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(str(tmp_path))


def test_the_shipped_file_serves_the_configs_router_and_takes_another(config: RunConfig) -> None:
    shipped = serve_file(config)
    assert shipped.router == "soft_block"
    changed = yaml.safe_load(shipped.with_router("soft_block-may", "v2"))
    assert user_config(changed) == RouterUserConfig(router="soft_block-may", version="v2", strong_fraction=0.3)
    assert "deployments" in changed["applications"][0]
    del changed["applications"][0]["deployments"]
    assert changed == shipped.content


def test_a_fraction_in_force_and_other_deployments_stay(config: RunConfig) -> None:
    others = {"name": "Ingress", "num_replicas": 2}
    router = {"name": "Router", "num_replicas": 2, "user_config": {"router": "hard_block-april", "strong_fraction": 0.15}}
    before = serve_file(config, deployments=[others, router])
    assert before.router == "hard_block-april"
    changed = yaml.safe_load(before.with_router("hard_block-may", "v2"))
    assert changed["applications"][0]["deployments"] == [
        others,
        {**router, "user_config": {"router": "hard_block-may", "version": "v2", "strong_fraction": 0.15}},
    ]
    assert before.router == "hard_block-april"
