import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from firewall_ray.store.layout import ArtifactStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tasks = {"tiny_world": {"num_train": 40, "num_validation": 10, "num_test": 20}}
    models = {"weak": {"path": "-"}, "strong": {"path": "-"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"root": str(tmp_path / "run"), "queries": {"tasks": tasks}, "models": models}))
    return path


def run(*arguments: object, script: str = "prepare_queries", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_job_prints_one_json_line_on_stdout_and_the_rest_on_stderr(config: Path, tmp_path: Path) -> None:
    done = run("--config", config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert (result["job"], result["root"]) == ("prepare_queries", str(tmp_path / "run"))
    assert result["stages"][0] | {"path": ""} == {
        "stage": "prepare_queries",
        "action": "run",
        "path": "",
        "queries": 70,
        "tiny_world/train": 40,
        "tiny_world/validation": 10,
        "tiny_world/test": 20,
    }
    assert "queries 70" in done.stderr


def test_a_finished_stage_is_skipped_unless_forced(config: Path) -> None:
    actions = [json.loads(run("--config", config, *flags).stdout)["stages"][0]["action"] for flags in ([], [], ["--force"])]
    assert actions == ["run", "skip", "run"]


def test_flags_are_above_the_file(config: Path, tmp_path: Path) -> None:
    flags = [
        "--root",
        tmp_path / "other",
        "--set",
        "queries.tasks.tiny_world.num_train=4",
        "--set",
        "pair.weak=strong",
        "--limit",
        9,
    ]
    assert run("--config", config, *flags).returncode == 0
    manifest = ArtifactStore(str(tmp_path / "other")).queries().manifest()
    assert manifest["counts"]["queries"] == 9
    assert manifest["config"]["pair"]["weak"] == "strong"
    assert not (tmp_path / "run").exists()


def test_a_job_runs_from_any_folder(config: Path, tmp_path: Path) -> None:
    assert run("--config", config.name, "--root", "here", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here" / "queries" / "_MANIFEST.json").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--set", "sampling.num_sample=4"], "did you mean sampling.num_samples?"),
        (["--set", "sampling.num_samples=0"], "sampling.num_samples"),
        (["--set", "queries.tasks.tiny_world={num_train: 0, num_validation: 0, num_test: 0}"], "There are no queries"),
        (["--root", "nosuch://bucket"], "root: "),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_the_callers_fault_is_exit_code_2_with_one_message_and_no_traceback(config: Path, flags: list[str], named: str) -> None:
    done = run("--config", config, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "prepare_queries failed: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_root_that_cannot_be_written_is_exit_code_1_and_names_the_way_out(config: Path) -> None:
    done = run("--config", config, "--root", "/proc/run")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Cannot write under ROOT" in done.stderr
    assert "--root" in done.stderr


def test_a_missing_input_names_the_job_that_makes_it(config: Path) -> None:
    done = run("--config", config, script="label")
    assert (done.returncode, done.stdout) == (2, "")
    assert "python jobs/prepare_queries.py" in done.stderr


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_help_tells_the_flags_that_every_job_has(script: str) -> None:
    done = run("--help", script=script)
    assert done.returncode == 0, done.stderr
    assert all(flag in done.stdout for flag in ("--config", "--root", "--set", "--limit", "--force"))


def test_what_a_stage_prints_goes_to_stderr(config: Path, tmp_path: Path) -> None:
    script = tmp_path / "noisy.py"
    script.write_text(
        "from firewall_ray.cli import job\n"
        f"with job('noisy', {str(config)!r}, None, None, needs_ray=False) as context:\n"
        "    print('chatter')\n"
        "    context.report({'stage': 'noisy', 'rows': 3})\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["stages"] == [{"stage": "noisy", "rows": 3}]
    assert "chatter" in done.stderr


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(
        "from firewall_ray.cli import job\n"
        f"with job('sample', {str(config)!r}, None, None, needs_ray=False):\n"
        "    raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "run the same command again" in done.stderr


def test_a_relative_root_inside_a_submitted_job_is_warned_of(config: Path, tmp_path: Path) -> None:
    """Ray runs a submitted job in a copy of the working directory, and deletes that copy later."""
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    warning = "a copy of the working directory that Ray deletes later"
    assert warning in " ".join(run("--config", config, "--root", "runs/mine", cwd=copy).stderr.split())
    assert warning not in " ".join(run("--config", config, "--root", tmp_path / "safe", cwd=copy).stderr.split())
