"""python -m serve_app, as far as it goes without Ray."""

import pytest
from callers import KEYS

from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ConfigError
from serve_app.__main__ import check_host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "node-1"])
def test_without_keys_it_does_not_listen_to_the_network(host: str) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        check_host(host, ServingConfig(api_keys="disabled"))
    check_host(host, ServingConfig.model_validate({"api_keys": KEYS}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_keys_it_listens_to_this_machine(host: str) -> None:
    check_host(host, ServingConfig(api_keys="disabled"))
