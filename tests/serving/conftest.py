"""The one running application that the slow tests of serving share, since starting it costs a minute; and a collector of traces."""

import os
from collections.abc import Iterator

import pytest
from otlp_collector import Collector, over_http
from running_app import Served, run_application


@pytest.fixture(scope="session")
def served(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whoever breaks it waits until it is whole again."""
    yield from run_application(tmp_path_factory.mktemp("run"))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Whose endpoint the variables name, and nothing else."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with over_http() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running
