"""`serve deploy` of the shipped config file on a cluster of its own, as an operator does it, and a change while it runs."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray_head import free_port, ray_head
from running_app import wait_until
from servable_run import ROUTER, write_run

pytestmark = [pytest.mark.slow, pytest.mark.long]  # test_deploy_job.py deploys the same way

SHIPPED = Path("serve_app/serve_config.yaml")


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    with ray_head() as environment:
        yield environment


def serve(head: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command as an operator gives it."""
    return subprocess.run(["serve", *arguments], capture_output=True, text=True, env=head, timeout=120)


def test_the_shipped_config_file_deploys_and_a_new_fraction_reaches_the_running_replicas(
    head: dict[str, str], tmp_path: Path
) -> None:
    config = yaml.safe_load(SHIPPED.read_text())
    config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    application["args"]["config"] = write_run(tmp_path)
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{config['http_options']['port']}"

    def is_deployed() -> bool:
        return serve(head, "deploy", str(path)).returncode == 0  # once the head takes commands

    def is_running() -> bool:
        status = yaml.safe_load(serve(head, "status").stdout)["applications"]["firewall"]
        assert status["status"] not in ("DEPLOY_FAILED", "UNHEALTHY"), status["message"]
        return bool(status["status"] == "RUNNING")

    def is_ready() -> bool:  # asked before the status, which takes seconds of a CPU that the engines want
        try:
            return httpx.get(f"{url}/ready", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def chat() -> Any:
        body = {"model": "firewall", "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 4}
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()

    wait_until(is_deployed, "the head takes the file")
    wait_until(is_ready, "router and both models answer")
    assert is_running()
    before = chat()
    assert before.headers["x-firewall-reason"] == "score"
    assert before.json()["model"] == before.headers["x-firewall-route"]

    application["deployments"] = [{"name": "Router", "user_config": {"router": ROUTER, "strong_fraction": 1.0}}]
    path.write_text(yaml.safe_dump(config))
    assert is_deployed()
    wait_until(lambda: chat().headers["x-firewall-threshold"] == "inf", "all traffic goes strong")
    after = chat()
    assert after.headers["x-firewall-route"] == after.json()["model"] == "strong"
    assert after.headers["x-firewall-score"] == before.headers["x-firewall-score"]
