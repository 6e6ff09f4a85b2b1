"""`python -m serve_app.deploy` as a job, again and again: what has not changed stays, a router that was trained anew is loaded."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray_head import free_port, ray_head
from running_app import wait_until
from servable_run import ROUTER, models_elsewhere, write_run
from tiny_router import fill_folder

from firewall_ray.config.run import load_config
from firewall_ray.config.serve_file import ServeFile
from firewall_ray.router.card import CARD_FILE
from firewall_ray.store.layout import ArtifactStore
from serve_app.deploy import SERVE_CONFIG, read_serve_config

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """With a folder of its own: a job looks there for the cluster that it belongs to. Unix allows sockets short paths."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with ray_head(f"--temp-dir={folder}") as environment:
        yield environment
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """What is submitted, where nobody edits it meanwhile: other code is a reason to restart."""
    for package in ("firewall_ray", "serve_app"):
        shutil.copytree(REPOSITORY / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "code"


def deploy(head: dict[str, str], code: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Submitted again while the head is coming up."""
    command = ["ray", "job", "submit", "--working-dir", str(code), "--runtime-env", "jobs/runtime_env.yaml", "--"]
    command += ["python", "-m", "serve_app.deploy", *arguments]
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=head, timeout=TIMEOUT_S, check=False)
        coming_up = "Failed to connect" in done.stderr or "No available agent" in done.stderr
        if not coming_up or time.monotonic() > deadline:
            return done
        time.sleep(2)


def bought(folder: Path) -> Path:
    """A run whose models are elsewhere, where nobody answers: no engine starts."""
    path = Path(write_run(folder))
    raw = yaml.safe_load(path.read_text())
    raw["models"] = models_elsewhere("http://127.0.0.1:1/v1")
    path.write_text(yaml.safe_dump(raw))
    return path


def replicas(head: dict[str, str]) -> dict[str, Any]:
    """The processes of each deployment."""
    headers = {"Authorization": f"Bearer {(Path.home() / '.ray/auth_token').read_text().strip()}"}
    url = f"{head['RAY_API_SERVER_ADDRESS']}/api/serve/applications/"
    found = httpx.get(url, headers=headers, timeout=30).raise_for_status().json()["applications"]["firewall"]["deployments"]
    return {name: sorted(replica["pid"] for replica in deployment["replicas"]) for name, deployment in found.items()}


def test_deployed_again_a_router_that_was_trained_anew_is_loaded_and_nothing_restarts(
    head: dict[str, str], code: Path, tmp_path: Path
) -> None:
    config = bought(tmp_path)
    serve_config = yaml.safe_load(Path(SERVE_CONFIG).read_text())
    serve_config["http_options"]["port"] = port = free_port()
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(serve_config))
    arguments = ["--config", str(config), "--serve-config", str(tmp_path / "serve.yaml")]

    def version() -> str:
        body = {"model": "firewall", "messages": [{"role": "user", "content": "What is 2 plus 3?"}]}
        return str(httpx.post(f"http://127.0.0.1:{port}/v1/route", json=body, timeout=60).raise_for_status().json()["router"])

    first = deploy(head, code, *arguments)
    assert first.returncode == 0, first.stdout[-3_000:] + first.stderr[-3_000:]
    assert f"curl -i http://127.0.0.1:{port}/v1/chat/completions" in first.stdout
    assert version() == "0123456789abcdef"
    before = replicas(head)
    assert {name: len(pids) for name, pids in before.items()} == {"Router": 1, "Ingress": 1}

    router = Path(ArtifactStore(str(tmp_path)).router(ROUTER).path)
    fill_folder(router, seed=2)
    card = json.loads((router / CARD_FILE).read_text())
    (router / CARD_FILE).write_text(json.dumps({**card, "version": "fedcba9876543210"}))
    assert deploy(head, code, *arguments).returncode == 0
    wait_until(lambda: version() == "fedcba9876543210", "the replica has loaded it")
    assert replicas(head) == before

    # The file that a round of relabelling writes, where its router is the better one.
    store = ArtifactStore(str(tmp_path))
    shutil.copytree(router, store.router(f"{ROUTER}-may").path)
    (Path(store.router(f"{ROUTER}-may").path) / CARD_FILE).write_text(json.dumps({**card, "version": "00000000000000ff"}))
    better = ServeFile(read_serve_config(str(tmp_path / "serve.yaml")), load_config(str(config)))
    (tmp_path / "better.yaml").write_text(better.with_router(f"{ROUTER}-may", "00000000000000ff"))
    assert deploy(head, code, "--config", str(config), "--serve-config", str(tmp_path / "better.yaml")).returncode == 0
    wait_until(lambda: version() == "00000000000000ff", "the replica has loaded the better router")
    assert replicas(head) == before

    failed = deploy(head, code, *arguments, "--set", "pair.weak=strong")
    assert failed.returncode != 0
    assert "Serve could not deploy firewall" in failed.stdout
