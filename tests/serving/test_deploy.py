"""What `python -m serve_app.deploy` puts into Serve's config file, and what it makes of Serve's answers. Without a cluster."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_router import make_card

from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ArtifactMissing, SystemFailure
from firewall_ray.router.card import CARD_FILE
from firewall_ray.store.layout import ArtifactStore
from serve_app import deploy
from serve_app.deploy import SERVE_CONFIG, fill_in, read_serve_config

CONFIG = "jobs/configs/quickstart.yaml"
PACKAGE = "gcs://_ray_pkg_0123456789abcdef.zip"


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunConfig, ArtifactStore]:
    """A run with a card in the place of its router."""
    config = load_config(CONFIG, root=str(tmp_path / "run"))
    store = ArtifactStore(config.root)
    router = store.router("soft_block")
    router.begin({})
    (Path(router.path) / CARD_FILE).write_text(make_card(RouterConfig()).model_dump_json())
    router.finish({}, {})
    return config, store


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job's driver is told by Ray."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": PACKAGE}, "metadata": {}}))


def serve_config(path: Path, **fields: Any) -> dict[str, Any]:
    raw = yaml.safe_load(Path(SERVE_CONFIG).read_text())
    raw["applications"][0] |= fields
    raw["applications"].append({"name": "other", "route_prefix": "/other", "import_path": "other:app"})
    path.write_text(yaml.safe_dump(raw))
    return read_serve_config(str(path))


@pytest.mark.usefixtures("submitted")
def test_the_application_is_this_runs_from_the_code_that_was_submitted(run: Any, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config, store = run
    args = {"config": CONFIG, "root": config.root, "set": ["serving.strong_fraction=0.2"]}
    filled = fill_in(serve_config(tmp_path / "serve.yaml"), args, config, store)
    ours, other = ServeDeploySchema.model_validate(filled).applications
    assert ours.args == args
    assert ours.runtime_env["working_dir"] == PACKAGE
    (router,) = ours.deployments
    wanted = {"router": "soft_block", "version": "0123456789abcdef", "strong_fraction": config.serving.strong_fraction}
    assert (router.name, router.user_config) == ("Router", wanted)
    assert filled["applications"][1] == {"name": "other", "route_prefix": "/other", "import_path": "other:app"}
    assert (other.args, other.deployments) == ({}, [])


@pytest.mark.usefixtures("submitted")
def test_what_the_file_says_itself_stays(run: Any, tmp_path: Path) -> None:
    own = {
        "runtime_env": {"working_dir": "s3://bucket/code.zip", "env_vars": {"A": "1"}},
        "deployments": [
            {"name": "Ingress", "max_ongoing_requests": 9},
            {"name": "Router", "user_config": {"router": "hard_block", "strong_fraction": 0.1}},
        ],
    }
    filled = fill_in(serve_config(tmp_path / "serve.yaml", **own), {"config": CONFIG, "root": run[0].root}, *run)
    assert {key: filled["applications"][0][key] for key in own} == own


def test_outside_of_a_submitted_job_the_config_is_found_from_any_folder(run: Any, tmp_path: Path) -> None:
    filled = fill_in(serve_config(tmp_path / "serve.yaml"), {"config": CONFIG, "root": run[0].root}, *run)
    assert filled["applications"][0]["args"]["config"] == os.path.abspath(CONFIG)
    assert "runtime_env" not in filled["applications"][0]


def test_a_run_without_a_router_is_not_deployed(tmp_path: Path) -> None:
    config = load_config(CONFIG, root=str(tmp_path / "empty"))
    with pytest.raises(ArtifactMissing, match=r"python jobs/train_router\.py"):
        fill_in(serve_config(tmp_path / "serve.yaml"), {"config": CONFIG}, config, ArtifactStore(config.root))


class Serve:
    """Answers as Serve's dashboard does, one status after the other."""

    def __init__(self, *statuses: str) -> None:
        self._statuses = iter(statuses)

    def get_serve_details(self) -> dict[str, Any]:
        replicas = [{"state": "RUNNING"}, {"state": "STARTING"}]
        deployments = {"Router": {"name": "Router", "target_num_replicas": 2, "replicas": replicas}}
        found = {"status": next(self._statuses), "message": "no such model", "deployments": deployments}
        return {"applications": {"firewall": found}}


def test_it_waits_until_the_application_runs_and_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deploy, "POLL_S", 0)
    with caplog.at_level("INFO", logger="firewall_ray"):
        deploy._wait_until_running(Serve("DEPLOYING", "DEPLOYING", "UNHEALTHY", "RUNNING"), "firewall")
    assert caplog.messages == ["deploy: firewall is DEPLOYING. Replicas: Router 1 of 2"]


def test_a_failed_deployment_ends_it_with_serves_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "POLL_S", 0)
    with pytest.raises(SystemFailure, match="could not deploy firewall: no such model"):
        deploy._wait_until_running(Serve("DEPLOYING", "DEPLOY_FAILED"), "firewall")
