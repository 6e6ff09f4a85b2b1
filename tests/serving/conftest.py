"""The one running application that the slow tests of serving share: starting it costs a minute."""

from collections.abc import Iterator

import pytest
from running_app import Served, run_application


@pytest.fixture(scope="session")
def served(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whoever breaks it waits until it is whole again."""
    yield from run_application(tmp_path_factory.mktemp("run"))
