"""HumanEval through the grading stage: programs executed in Ray's workers, each with a sandbox of its own."""

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import make_config, query, sample, write

from firewall_ray.config.grading import HumanevalGradingConfig
from firewall_ray.errors import SandboxUnavailable
from firewall_ray.sandbox import sandbox as sandbox_module
from firewall_ray.sandbox.program import Limits
from firewall_ray.sandbox.sandbox import Sandbox, shared_sandbox
from firewall_ray.schemas import SAMPLES
from firewall_ray.stages import grade as grading
from firewall_ray.stages.grade import grade_batch, run_grading
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks import humaneval

OPTIONS = {"humaneval": HumanevalGradingConfig(isolation="unsafe").model_dump()}
REFERENCE = {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"}
RIGHT, WRONG, LOOP = "    return 1\n", "    return 2\n", "    while True:\n        pass\n"


def ours(name: str, **fields: Any) -> dict[str, Any]:
    return query(name, task="humaneval", split="test", reference=json.dumps({**REFERENCE, **fields}))


def graded(texts: list[str], greedy: str) -> dict[str, Any]:
    queries = pa.Table.from_pylist([ours("a")]).select(["query_id", "task", "reference"])
    rows = pa.Table.from_pylist([sample("a", texts, greedy, task="humaneval")], schema=SAMPLES)
    return grade_batch(rows, queries, "weak", OPTIONS).to_pylist()[0]


def require_isolation() -> None:
    with Sandbox(Limits(), "required") as sandbox:
        try:
            sandbox.run("")
        except SandboxUnavailable as e:
            pytest.skip(str(e))


def test_identical_completions_of_a_query_are_executed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []

    def build_program(completion: str, reference: Any) -> str:
        executed.append(completion)
        return build(completion, reference)

    build = humaneval.build_program
    monkeypatch.setattr(humaneval, "build_program", build_program)
    row = graded([RIGHT, WRONG, RIGHT, RIGHT], WRONG)
    assert (row["correct"], row["greedy_correct"]) == ([True, False, True, True], False)
    assert executed == [RIGHT, WRONG]


def test_one_worker_keeps_one_sandbox() -> None:
    graded([RIGHT], WRONG)
    options = OPTIONS["humaneval"]
    limits = Limits(options["timeout_s"], options["memory_mib"], options["scratch_mib"])
    server = shared_sandbox(limits, "unsafe")._server
    assert server is not None
    graded([WRONG], RIGHT)
    assert shared_sandbox(limits, "unsafe")._server is server


def test_a_machine_without_isolation_stops_the_job_instead_of_failing_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = "fork_server.send(int(sys.argv[2]), {'unavailable': 'unshare: Operation not permitted'})\nraise SystemExit\n"
    monkeypatch.setattr(sandbox_module, "_BOOT", sandbox_module._BOOT.replace("fork_server.main(", f"{refusing}fork_server.main("))
    monkeypatch.setattr(humaneval, "shared_sandbox", Sandbox)
    with pytest.raises(SandboxUnavailable, match="unshare: Operation not permitted"):
        graded([RIGHT], RIGHT)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestJob:
    def test_programs_are_executed_in_the_workers_and_a_hostile_one_harms_nobody(self, tmp_path: Path) -> None:
        require_isolation()
        store = ArtifactStore(str(tmp_path))
        names = [f"q{i}" for i in range(24)]
        write(store.queries(), [*map(ours, names), query("bad", task="humaneval", reference="{}")])
        hostile = ["    import os\n    os._exit(0)\n", "    import posix\n    while True:\n        posix.fork()\n", LOOP, RIGHT]
        rows = [sample(name, [RIGHT, WRONG, hostile[i % 4]], RIGHT, task="humaneval") for i, name in enumerate(names)]
        write(store.samples("weak"), [*rows, sample("bad", [RIGHT], RIGHT, task="humaneval")])
        sections = {"grading": {"batch_size": 4, "humaneval": {"timeout_s": 1}}}
        (result,) = run_grading(make_config(str(tmp_path), **sections), store, models=["weak"])
        assert (result["rows"], result["errors"]) == (25, 1)
        found = {row["query_id"]: row for row in store.grades("weak").require().read().to_pylist()}
        assert "KeyError: 'prompt'" in found.pop("bad")["error"]
        for i, name in enumerate(names):
            assert (found[name]["correct"], found[name]["greedy_correct"]) == ([True, False, i % 4 == 3], True)

    def test_the_programs_of_one_file_are_shared_among_workers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They were one task as long as they were fewer than 256 rows, and all of HumanEval is 164."""

        class Recording(humaneval.HumanEval):
            def grade(self, completion: str, reference: Any, options: Any) -> bool:
                (tmp_path / "workers" / f"{os.getpid()}").touch()
                time.sleep(self.verdict_s)
                return completion == RIGHT

        monkeypatch.setattr(grading, "known_tasks", lambda custom: {"humaneval": Recording()})
        (tmp_path / "workers").mkdir()
        store = ArtifactStore(str(tmp_path))
        names = [f"q{i}" for i in range(24)]
        write(store.queries(), [*map(ours, names)])
        # 24 rows of 7 texts and the greedy one: 24 * 8 * 25 ms = 4.8 s, so 9 or 10 blocks of half a second
        write(store.samples("weak"), [sample(name, [f"{i}" for i in range(7)], RIGHT, task="humaneval") for name in names])
        run_grading(make_config(str(tmp_path)), store, models=["weak"])
        assert len(list((tmp_path / "workers").iterdir())) >= 2
        assert len(store.grades("weak").require().files()) == 1

    def test_executed_samples_of_a_real_model_get_their_official_verdicts(self, tmp_path: Path, shared_data: Path) -> None:
        """Every tenth problem of CodeT's file, 20 samples each; benchmarks/code_execution.py executes all 16,400."""
        require_isolation()
        with gzip.open(shared_data / "HumanEval.jsonl.gz", "rt") as lines:
            problems = {row["task_id"]: row for row in map(json.loads, lines)}
        official: dict[str, list[tuple[str, bool]]] = {name: [] for name in list(problems)[::10]}
        columns = ["query_id", "response", "correct"]
        for row in pq.read_table(shared_data / "outcomes" / "codet_humaneval_codegen16b.parquet", columns=columns).to_pylist():
            if len(official.get(row["query_id"], [None] * 20)) < 20:
                official[row["query_id"]].append((row["response"], bool(row["correct"])))
        store = ArtifactStore(str(tmp_path))
        fields = ("prompt", "test", "entry_point")
        write(store.queries(), [ours(name, **{field: problems[name][field] for field in fields}) for name in official])
        write(
            store.samples("weak"),
            [sample(name, [text for text, _ in rows], rows[0][0], task="humaneval") for name, rows in official.items()],
        )
        run_grading(make_config(str(tmp_path), grading={"batch_size": 4}), store, models=["weak"])
        found = {row["query_id"]: row["correct"] for row in store.grades("weak").require().read().to_pylist()}
        verdicts = [(ours, theirs) for name, rows in official.items() for ours, (_, theirs) in zip(found[name], rows, strict=True)]
        assert len(verdicts) == 340
        assert sum(ours == theirs for ours, theirs in verdicts) / len(verdicts) >= 0.995
