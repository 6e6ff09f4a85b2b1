"""An empty run."""

from pathlib import Path

import pytest
from handmade import make_config

from firewall_ray.config.run import RunConfig
from firewall_ray.store.layout import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(str(tmp_path), evaluation={"num_bootstrap": 200})
