"""The whole way in one command, small: real vLLM, Ray Data, DeepSpeed. And the same jobs through `ray job submit`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import ray_head

from firewall_ray.config.run import load_config
from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


def run_job(job: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """A job as a user runs it, with a Ray of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, f"jobs/{job}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=800)
    assert not check or done.returncode == 0, done.stderr[-3_000:]
    return done


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's configuration with fewer queries, samples and epochs."""
    folder = tmp_path_factory.mktemp("pipeline")
    config = yaml.safe_load((REPOSITORY / "jobs/configs/quickstart.yaml").read_text())
    config["root"] = str(folder / "run")
    config["queries"]["tasks"]["tiny_world"] = {"num_train": 300, "num_validation": 80, "num_test": 120}
    config["sampling"]["num_samples"] = 8
    config["router"] |= {"designs": ["soft_block", "hard_label"], "epochs": 2}
    config["evaluation"] = {"num_bootstrap": 100}
    config["ray"]["dashboard"] = False
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def first_run(config_file: Path) -> "subprocess.CompletedProcess[str]":
    return run_job("pipeline", "--config", str(config_file))


def test_one_command_goes_from_nothing_to_a_report(first_run: Any, config_file: Path) -> None:
    stages = [(stage["stage"], stage.get("action")) for stage in json.loads(first_run.stdout.splitlines()[-1])["stages"]]
    names = ["prepare_queries", "sample", "sample", "grade", "grade", "label", "train_router", "score", "report"]
    assert [name for name, _ in stages] == names
    root = Path(load_config(config_file).root)
    report = json.loads((root / "report/report.json").read_text())
    assert {"soft_block", "hard_label"} <= report["routers"].keys()
    for router in ("soft_block", "hard_label"):
        assert report["routers"][router]["all"]["num_queries"] == 120
        apgr = report["routers"][router]["all"]["apgr"]
        assert apgr["low"] <= apgr["value"] <= apgr["high"]
    assert report["models"]["strong"]["tiny_world"]["pass_rate"] > report["models"]["weak"]["tiny_world"]["pass_rate"]
    for row in ("soft_block", "hard_label", "oracle", "always strong", str(root / "report/report.html")):
        assert row in first_run.stderr
    assert "<html" in (root / "report/report.html").read_text()


def test_only_the_json_line_is_on_stdout(first_run: Any) -> None:
    assert len(first_run.stdout.splitlines()) == 1


def test_the_second_run_does_nothing_again(first_run: Any, config_file: Path) -> None:
    root = Path(load_config(config_file).root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    second = run_job("pipeline", "--config", str(config_file))
    stages = json.loads(second.stdout.splitlines()[-1])["stages"]
    assert {stage.get("action") for stage in stages} == {"skip"}
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_from_redoes_a_stage_and_what_follows_and_keeps_what_is_before(first_run: Any, config_file: Path) -> None:
    done = run_job("pipeline", "--config", str(config_file), "--from", "report")
    actions = {stage["stage"]: stage.get("action") for stage in json.loads(done.stdout.splitlines()[-1])["stages"]}
    assert (actions["sample"], actions["train_router"], actions["report"]) == ("skip", "skip", "run")
    wrong = run_job("pipeline", "--config", str(config_file), "--from", "reports", check=False)
    assert wrong.returncode == 2
    assert "the stages are prepare_queries, sample," in wrong.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with ray_head() as environment:
        yield environment


def submit(head: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`ray job submit`, tried again while the head is still coming up."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--", *arguments]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=head, timeout=400)
        coming_up = "Failed to connect" in done.stderr or "No available agent" in done.stderr
        if not coming_up or time.monotonic() > deadline:
            return done
        time.sleep(3)


def test_a_job_runs_through_ray_job_submit(head: dict[str, str], config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, root=str(tmp_path))
    run_prepare_queries(config, ArtifactStore(config.root))
    arguments = ["python", "jobs/sample.py", "--config", str(config_file), "--root", str(tmp_path), "--limit", "20"]
    done = submit(head, *arguments, "--model", "weak")
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    assert ArtifactStore(str(tmp_path)).samples("weak").require().num_rows() == 20
