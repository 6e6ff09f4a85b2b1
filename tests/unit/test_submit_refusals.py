"""jobs/submit.py, as far as it goes without a cluster: what is refused before anything is uploaded, and how a log is followed."""

import asyncio
import os
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from firewall_ray.errors import ConfigError
from serve_app.deploy import SERVE_CONFIG, read_serve_config

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = "jobs/configs/quickstart.yaml"
NOBODY = "http://127.0.0.1:1"


def submit(*arguments: str, cwd: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["RAY_API_SERVER_ADDRESS"] = NOBODY
    command = [sys.executable, str(REPOSITORY / "jobs/submit.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "no/such.yaml"], "--config no/such.yaml"),
        (["--config", QUICKSTART], "root: 'runs/quickstart' is relative"),
        (["--config", QUICKSTART, "--root", "runs/mine"], "root: 'runs/mine' is relative"),
        (["--config", QUICKSTART, "--root", "/mine", "--set", "sampling.num_sample=4"], "did you mean sampling.num_samples?"),
        (["--config", QUICKSTART, "--root", "/mine", "--serve-config", "none.yaml"], "--serve-config none.yaml"),
        (["--config", QUICKSTART, "--root", "/mine", "--serve-config", QUICKSTART], "is not a config file of Ray Serve"),
        (["--config", QUICKSTART, "--root", "/mine", "--runtime-env", "none.yaml"], "--runtime-env none.yaml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_uploaded(arguments: list[str], named: str) -> None:
    done = submit(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_that_cannot_be_reached_is_named_with_what_says_where_it_is(tmp_path: Path) -> None:
    done = submit("--config", QUICKSTART, "--root", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert NOBODY in done.stderr
    assert "RAY_API_SERVER_ADDRESS" in done.stderr


def test_serve_config_must_have_this_application_once(tmp_path: Path) -> None:
    raw = yaml.safe_load(Path(SERVE_CONFIG).read_text())
    path = tmp_path / "serve.yaml"
    for applications in ([], [{"name": "other", "route_prefix": "/other", "import_path": "other:app"}]):
        path.write_text(yaml.safe_dump({**raw, "applications": applications}))
        with pytest.raises(ConfigError, match="exactly one application must have import_path"):
            read_serve_config(str(path))


class Cluster:
    """A cluster's log of a job, as the client reads it: from its beginning each time, cut off where a connection breaks."""

    def __init__(self, connections: list[list[str | Exception]]) -> None:
        self._connections = iter(connections)
        self._is_last = False

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in next(self._connections):
            if isinstance(part, Exception):
                raise part
            yield part

    def get_job_status(self, job_id: str) -> Any:
        from ray.job_submission import JobStatus

        done, self._is_last = self._is_last, True
        return JobStatus.SUCCEEDED if done else JobStatus.RUNNING


def test_a_broken_connection_is_made_again_and_no_line_is_printed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(REPOSITORY / "jobs/submit.py"))
    module["_follow"].__globals__["RECONNECT_S"] = 0.01
    broken = RuntimeError("WebSocket connection closed unexpectedly")
    cluster = Cluster([["one\n", "two", broken], [broken], ["one\ntw"], ["one\n", "two\nth", "ree\n"]])
    asyncio.run(module["_follow"](cluster, "job"))
    printed = capsys.readouterr()
    assert printed.out == "one\ntwo\nthree\n"
    assert printed.err.count("trying again") == 1
