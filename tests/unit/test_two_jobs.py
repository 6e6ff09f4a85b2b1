"""Two real jobs on one ROOT: one works, the other waits; whoever is killed keeps nobody off."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from firewall_ray.store.layout import ArtifactStore

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 60

# jobs/prepare_queries.py, stopped in the middle of its rows until a file appears.
PAUSED = """
import sys, time
from pathlib import Path
from firewall_ray.stages import prepare_queries as queries
from firewall_ray.cli import job

config, begun, go = sys.argv[1:]
keep_first = queries.keep_first

def paused(rows, kept):
    for number, row in enumerate(keep_first(rows, kept)):
        if number == 10:
            Path(begun).touch()
            while not Path(go).exists():
                time.sleep(0.05)
        yield row

queries.keep_first = paused
with job("prepare_queries", config, None, None, needs_ray=False, writes=["queries"]) as context:
    context.report(queries.run_prepare_queries(context.config, context.store))
"""

# jobs/prepare_queries.py as it is, less patient.
IMPATIENT = """
import runpy, signal
from firewall_ray.store import leases
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
leases.POLL_S, leases.ORPHANS_S = 0.2, 0.5
runpy.run_path("jobs/prepare_queries.py", run_name="__main__")
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "run.yaml", tmp_path / "run")


def write_config(path: Path, root: Path) -> Path:
    tasks = {"tiny_world": {"num_train": 40, "num_validation": 10, "num_test": 20}}
    models = {"weak": {"path": "-"}, "strong": {"path": "-"}}
    path.write_text(yaml.safe_dump({"root": str(root), "queries": {"tasks": tasks}, "models": models}))
    return path


def start(script: str, *arguments: object, stderr: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with stderr.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def words(path: Path) -> str:
    return " ".join(path.read_text().split())


def claims_in(root: Path) -> list[Path]:
    return list((root / "_jobs").glob("*"))


@pytest.fixture
def paused(config: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A job in the middle of writing queries/; touching `go` lets it finish."""
    process = start(PAUSED, config, tmp_path / "begun", tmp_path / "go", stderr=tmp_path / "first.log")
    wait_until((tmp_path / "begun").exists, "the first job writes rows")
    yield process
    process.kill()
    process.wait()


def rows_of_a_single_run(tmp_path: Path) -> list[dict[str, Any]]:
    alone = write_config(tmp_path / "alone.yaml", tmp_path / "alone")
    process = start(IMPATIENT, "--config", alone, stderr=tmp_path / "alone.log")
    assert process.wait(TIMEOUT_S) == 0, words(tmp_path / "alone.log")
    rows: list[dict[str, Any]] = ArtifactStore(str(tmp_path / "alone")).queries().require().read().to_pylist()
    return rows


def test_the_second_of_two_jobs_on_one_root_says_whom_it_waits_for_and_finds_its_rows_whole(
    paused: "subprocess.Popen[str]", config: Path, tmp_path: Path
) -> None:
    log = tmp_path / "second.log"
    second = start(IMPATIENT, "--config", config, stderr=log)
    wait_until(lambda: "waits for" in words(log), "the second job waits")
    named = f"prepare_queries waits for `prepare_queries` (process {paused.pid} on {socket.gethostname()}, since 20"
    assert named in words(log)
    assert "Ctrl-C ends the waiting; another --root does without." in words(log)
    queries = ArtifactStore(str(tmp_path / "run")).queries()
    assert queries.state() == "unfinished"

    (tmp_path / "go").touch()
    first_result, second_result = (json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in (paused, second))
    assert (paused.returncode, second.returncode) == (0, 0)
    assert [result["stages"][0]["action"] for result in (first_result, second_result)] == ["run", "skip"]
    assert queries.require().read().to_pylist() == rows_of_a_single_run(tmp_path)
    assert claims_in(tmp_path / "run") == []


def test_a_killed_job_keeps_nobody_off_and_the_next_one_makes_the_rows_whole(
    paused: "subprocess.Popen[str]", config: Path, tmp_path: Path
) -> None:
    paused.kill()  # not waited for: a zombie is dead as well
    assert len(claims_in(tmp_path / "run")) == 1
    second = start(IMPATIENT, "--config", config, stderr=tmp_path / "second.log")
    result = json.loads(second.communicate(timeout=TIMEOUT_S)[0])
    assert result["stages"][0]["action"] == "run"
    assert ArtifactStore(str(tmp_path / "run")).queries().require().read().to_pylist() == rows_of_a_single_run(tmp_path)
    assert claims_in(tmp_path / "run") == []


def test_a_job_that_is_stopped_takes_its_claim_along(paused: "subprocess.Popen[str]", tmp_path: Path) -> None:
    paused.terminate()
    assert paused.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert claims_in(tmp_path / "run") == []


def test_a_job_that_is_interrupted_while_it_waits_leaves_the_other_alone(
    paused: "subprocess.Popen[str]", config: Path, tmp_path: Path
) -> None:
    log = tmp_path / "second.log"
    second = start(IMPATIENT, "--config", config, stderr=log)
    wait_until(lambda: "waits for" in words(log), "the second job waits")
    second.send_signal(signal.SIGINT)
    assert second.wait(TIMEOUT_S) == 130
    assert len(claims_in(tmp_path / "run")) == 1
    (tmp_path / "go").touch()
    assert paused.wait(TIMEOUT_S) == 0


def test_jobs_that_use_other_folders_do_not_wait(paused: "subprocess.Popen[str]", config: Path, tmp_path: Path) -> None:
    """jobs/report.py reads scores/, which are not there: it gets as far as saying so."""
    command = [sys.executable, "jobs/report.py", "--config", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert "Run: python jobs/score.py" in " ".join(done.stderr.split())
    assert paused.poll() is None


def test_a_job_whose_claim_was_deleted_ends_and_says_why(config: Path, tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from firewall_ray.store import leases\n"
        "from firewall_ray.cli import job\n"
        "leases.HEARTBEAT_S = 0.1\n"
        "with job('sample', sys.argv[1], None, None, needs_ray=False):\n"
        "    threading.Event().wait()\n"
    )
    process = start(script, config, stderr=tmp_path / "log")
    wait_until(lambda: claims_in(tmp_path / "run"), "it holds the lease")
    while process.poll() is None:  # a heartbeat may be just writing it
        for claim in claims_in(tmp_path / "run"):
            claim.unlink(missing_ok=True)
        time.sleep(0.05)
    assert process.returncode == 1
    assert "The lease on ROOT is lost: the claim" in words(tmp_path / "log")
    assert "Run the same command again to go on." in words(tmp_path / "log")
