"""Bad input, as a user meets it: the job ends non-zero, one message names what is wrong, and nothing is half-written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from handmade import grade, make_config, query, write, write_pair

from firewall_ray.stages.prepare_queries import run_prepare_queries
from firewall_ray.store.layout import ArtifactStore

ROOT = Path(__file__).parents[2]

Break = Callable[[ArtifactStore, Path], Any]


def run(script: str, root: str, folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    content = make_config(root).model_dump(mode="json", exclude_unset=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, str(ROOT / "jobs" / f"{script}.py"), "--config", str(folder / "run.yaml"), *flags]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def unfinished_queries(store: ArtifactStore) -> None:
    run_prepare_queries(make_config(store.root), store, force=True)
    (Path(store.queries().path) / "_MANIFEST.json").unlink()


def without_column(store: ArtifactStore) -> None:
    schema = store.grades("strong").schema
    write(store.grades("strong"), [grade("a", "11")], schema=schema.remove(schema.get_field_index("greedy_correct")))


CASES: dict[str, tuple[Break, str]] = {
    "no queries": (lambda store, _: write(store.queries(), []), "none of the queries"),
    "duplicate query_id": (lambda store, _: write(store.queries(), [query("a"), query("a")]), "query_id 'a' comes more than once"),
    "duplicate grade": (lambda store, _: write(store.grades("weak"), [grade("a", "11")] * 2), "query_id 'a' comes more than once"),
    "unequal n": (lambda store, _: write(store.grades("weak"), [grade("a", "1")]), "query 'a' has 1 graded samples"),
    "wrong columns": (lambda store, _: without_column(store), "lacks the columns ['greedy_correct']"),
    "truncated": (lambda _, root: truncate(root / "grades/strong/theirs.parquet"), "theirs.parquet is not a whole Parquet file"),
    "unfinished": (lambda store, _: unfinished_queries(store), "was begun and never finished"),
    "missing": (lambda _, root: (root / "grades/strong/theirs.parquet").unlink(), "Run: python jobs/grade.py"),
}


@pytest.mark.parametrize("case", CASES)
def test_label_refuses(case: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = ArtifactStore(str(root))
    write_pair(store, [query("a"), query("b")], [grade("a", "11")], [grade("a", "01")])
    damage, named = CASES[case]
    damage(store, root)
    done = run("label", str(root), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / "labels").exists()


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("sampling.num_samples=0", "sampling.num_samples: Input should be greater than or equal to 1 (given: 0)"),
        ("sampling.temperature=0", "temperature 0 gives the same completion 32 times"),
        ("grading.gsm8k.rul=official", "did you mean grading.gsm8k.rule?"),
    ],
)
def test_a_wrong_config_stops_before_root_is_touched(flag: str, named: str, tmp_path: Path) -> None:
    done = run("prepare_queries", str(tmp_path / "root"), tmp_path, "--set", flag)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert not (tmp_path / "root").exists()


def test_an_s3_root_without_credentials_or_network_says_what_to_check(tmp_path: Path) -> None:
    done = run(
        "prepare_queries",
        "s3://bucket/run?region=us-east-1&endpoint_override=127.0.0.1:9&scheme=http",
        tmp_path,
        AWS_EC2_METADATA_DISABLED="true",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    assert "endpoint_override" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_under_tmpdir_is_named_and_leaves_no_labels(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: the same OSError, from the same writes."""
    store = ArtifactStore(str(tmp_path / "root"))
    names = [f"q{i}" for i in range(5_000)]
    grades = [grade(name, "01") for name in names]
    write_pair(store, [query(name) for name in names], grades, grades)
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from handmade import make_config\n"
        "from firewall_ray.cli import job\n"
        "from firewall_ray.stages.label import run_labeling\n"
        "with job('label', sys.argv[1], None, None, needs_ray=False) as context:\n"
        "    run_labeling(context.config, context.store)\n"
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(make_config(store.root).model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-c", script, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Set TMPDIR to a folder with more space" in done.stderr
    assert store.labels().state() == "missing"


@pytest.mark.parametrize("root", ["", "s3:/bucket/run"])
def test_a_root_that_is_no_place_stops_before_a_folder_is_made(root: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(make_config("-").model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, str(ROOT / "jobs/prepare_queries.py"), "--config", "run.yaml", "--root", root]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "prepare_queries failed: root: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_routing_into_a_folder_is_refused_before_ray_starts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query_id": [1, 1], "prompt": ["a", "a"]}), tmp_path / "mine.parquet")
    flags = ["--queries", str(tmp_path / "mine.parquet"), "--num-strong", "1", "--out", str(tmp_path)]
    done = run("score", str(tmp_path / "root"), tmp_path, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is a folder. Name a file in it" in done.stderr
    assert "Ray" not in done.stderr
