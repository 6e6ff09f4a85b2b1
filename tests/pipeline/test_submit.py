"""jobs/submit.py against a cluster's head: exit codes, what the dashboard shows, and a job that waits, is left and is stopped.

No engine starts here; test_scrape.py goes the whole way to a deployed application.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray_head import ray_head

from firewall_ray.store import leases
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.leases import Claim, Claims

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with ray_head() as environment:
        wait_until(lambda: jobs(environment) is not None, "the head takes jobs")
        yield environment


def jobs(head: dict[str, str]) -> dict[str, Any] | None:
    """What the dashboard's page of jobs shows, by submission id; None while it is coming up."""
    try:
        headers = {"Authorization": f"Bearer {(Path.home() / '.ray/auth_token').read_text().strip()}"}
        found = httpx.get(f"{head['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers, timeout=30).raise_for_status().json()
    except (httpx.HTTPError, FileNotFoundError):
        return None
    return {job["submission_id"]: job for job in found if job["submission_id"]}


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def submit(head: dict[str, str], *arguments: str, log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "jobs/submit.py", *arguments]
    with log.open("w") as file:
        # Where the tests run in the background SIGINT is ignored, and children would inherit that.
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.Popen(command, stdout=file, stderr=file, text=True, cwd=REPOSITORY, env=head, preexec_fn=listen)


def submission_id(log: Path) -> str:
    found = re.search(r"Submitted (\w+):", log.read_text())
    assert found, log.read_text()
    return found[1]


def test_the_exit_code_is_the_jobs_and_the_dashboard_shows_what_was_submitted(head: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = submit(head, "--config", "/no/such/config.yaml", "--root", str(tmp_path), "--limit", "7", log=log)
    assert process.wait(TIMEOUT_S) == 2
    assert "--config /no/such/config.yaml: No such file" in log.read_text()
    assert "Run the same command again" in log.read_text()
    job = (jobs(head) or {})[submission_id(log)]
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)
    assert job["metadata"]["config"] == "/no/such/config.yaml"
    pipeline, deploy = job["entrypoint"].split(" && ")
    assert pipeline == f"python jobs/pipeline.py --config /no/such/config.yaml --root {tmp_path} --limit 7"
    assert deploy.startswith(f"python -m serve_app.deploy --config /no/such/config.yaml --root {tmp_path} --serve-config ")


def test_a_job_waits_for_the_one_before_it_goes_on_without_this_command_and_can_be_stopped(
    head: dict[str, str], tmp_path: Path
) -> None:
    config = yaml.safe_load((REPOSITORY / "jobs/configs/quickstart.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "root": str(tmp_path / "run")}))
    claims = Claims(ArtifactStore(str(tmp_path / "run")))
    claims.write(Claim("sample", host="here", pid=os.getpid(), process=leases._process(os.getpid()), ray_job="raysubmit_before"))

    log = tmp_path / "log"
    process = submit(head, "--config", str(tmp_path / "config.yaml"), log=log)
    waits = f"pipeline waits for `sample` (process {os.getpid()} on here, Ray job raysubmit_before"
    wait_until(lambda: waits in " ".join(log.read_text().split()), "the job waits for the one that holds ROOT")
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130
    job = submission_id(log)
    assert f"{job} goes on without this command." in log.read_text()
    assert (jobs(head) or {})[job]["status"] == "RUNNING"

    assert f"ray job stop {job}" in log.read_text()
    subprocess.run(["ray", "job", "stop", job], env=head, capture_output=True, timeout=TIMEOUT_S, check=True)
    assert (jobs(head) or {})[job]["status"] == "STOPPED"
    assert len(list((tmp_path / "run/_jobs").iterdir())) == 1  # the one that it waited for
