import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firewall_ray.config.grading import HumanevalGradingConfig
from firewall_ray.config.queries import TasksConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.errors import SandboxUnavailable, TaskError
from firewall_ray.evaluation.pass_at_k import mean_pass_at_k, pass_at_k
from firewall_ray.sandbox.program import Limits
from firewall_ray.sandbox.sandbox import Sandbox
from firewall_ray.tasks import get_task
from firewall_ray.tasks.humaneval import build_program

OPTIONS = HumanevalGradingConfig().model_dump()
ROW = {
    "task_id": "Ours/0",
    "prompt": 'def twice(x):\n    """Two times x.\n    >>> twice(2)\n    4\n    """\n',
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    "entry_point": "twice",
}


@pytest.fixture(scope="module")
def problems(shared_data: Path) -> dict[str, Any]:
    with gzip.open(shared_data / "HumanEval.jsonl.gz", "rt") as lines:
        return {row["task_id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = Limits(OPTIONS["timeout_s"], OPTIONS["memory_mib"], OPTIONS["scratch_mib"])
    with Sandbox(limits, "required") as started:
        try:
            started.run("")
        except SandboxUnavailable as e:
            pytest.skip(str(e))
        yield started


def grade(completion: str, row: dict[str, Any] = ROW) -> bool:
    return get_task("humaneval").grade(completion, row, {**OPTIONS, "isolation": "unsafe"})  # our own programs, on any machine


def load(folder: Path, rows: list[Any], name: str = "test.jsonl", **options: Any) -> list[Any]:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return list(get_task("humaneval").load({"source": str(folder), "num_test": None, **options}))


# Executing -----------------------------------------------------------------------------------------------------------


def test_all_golden_cases_have_the_official_outcome_word_for_word(
    shared_data: Path, problems: dict[str, Any], sandbox: Sandbox
) -> None:
    cases = json.loads((shared_data / "humaneval_exec_cases.json").read_text())["cases"]
    assert len(cases) >= 16
    for case in cases:
        assert sandbox.run(build_program(case["completion"], problems[case["task_id"]])) == case["result"], case["note"]


def test_every_canonical_solution_passes_and_no_empty_one_does(problems: dict[str, Any], sandbox: Sandbox) -> None:
    assert len(problems) == 164
    for name, row in problems.items():
        assert sandbox.run(build_program(row["canonical_solution"], row)) == "passed", name
        assert sandbox.run(build_program("", row)).startswith("failed: "), name


def test_a_completion_passes_the_tests_or_it_does_not() -> None:
    assert grade("    return 2 * x\n") is True
    assert grade("    return x + 2\n") is False
    assert grade("def twice(x):\n    return x + x\n") is True  # the header again: the second definition wins
    assert grade("") is False
    assert grade("\0") is False


# Loading -------------------------------------------------------------------------------------------------------------


def test_the_real_data_set_is_a_test_split_whose_prompts_hold_no_tests(shared_data: Path, problems: dict[str, Any]) -> None:
    queries = list(get_task("humaneval").load({"source": str(shared_data), "num_test": None}))
    assert [query.split for query in queries] == ["test"] * 164
    for query, row in zip(queries, problems.values(), strict=True):
        assert query.question == row["prompt"]
        assert query.prompt == f"Question: {row['prompt']}\nAnswer: "
        assert json.loads(query.reference) == {name: row[name] for name in ("prompt", "test", "entry_point", "canonical_solution")}
        assert row["canonical_solution"] not in query.prompt
        assert "check(candidate)" not in query.prompt
        assert row["test"].strip() not in query.prompt


def test_a_cap_draws_by_the_seed_and_keeps_what_a_smaller_one_has(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"def twice(x):  # {i}\n"} for i in range(20)]
    two, five, other = (
        [query.question for query in load(tmp_path, rows, num_test=number, seed=seed)] for number, seed in ((2, 0), (5, 0), (5, 1))
    )
    assert two == five[:2]
    assert len(set(five)) == 5
    assert five != other
    assert five != [row["prompt"] for row in rows[:5]]


def test_queries_from_before_the_seed_are_those_of_the_same_settings() -> None:
    """The options are the queries' settings: a new one among them would make every finished run's queries again."""
    assert set(TasksConfig.model_validate({"humaneval": {}}).options()["humaneval"]) == {"source", "num_test"}
    assert TasksConfig.model_validate({"humaneval": {"num_test": 9}}).options()["humaneval"]["seed"] == 0


@pytest.mark.parametrize("name", ["test.jsonl", "humaneval_test.jsonl", "humaneval.jsonl", "HumanEval.jsonl"])
def test_a_local_file_is_found_by_its_split_or_its_task(tmp_path: Path, name: str) -> None:
    assert len(load(tmp_path, [ROW], name)) == 1


def test_two_files_of_the_same_split_are_refused(tmp_path: Path) -> None:
    load(tmp_path, [ROW])
    with pytest.raises(TaskError, match=r"has \['HumanEval.jsonl', 'test.jsonl'\].*Leave exactly one"):
        load(tmp_path, [ROW], "HumanEval.jsonl")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({**ROW, "test": None}, r"row 2: `test` must be a text, there is None"),
        ({**ROW, "entry_point": " "}, r"row 2: `entry_point` must be a text"),
        ({"prompt": "x"}, r"row 2: `test` must be a text, there is only \['prompt'\]"),
        ({**ROW, "entry_point": "not a name"}, r"row 2: `entry_point` must be the name of a function, there is 'not a name'"),
        ("[1]", r"row 2: must be a JSON object"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Any, named: str) -> None:
    with pytest.raises(TaskError, match=named):
        load(tmp_path, [ROW, row])


def test_the_config_refuses_what_is_no_isolation() -> None:
    base = {"root": "r", "queries": {"tasks": {"humaneval": {}}}, "models": {"weak": {"path": "-"}, "strong": {"path": "-"}}}
    config = RunConfig.model_validate(base)
    assert config.grading.humaneval.isolation == "required"
    for section in ({"isolation": "none"}, {"timeout_s": 0}, {"memory_mib": 1}, {"timeout": 3}):
        with pytest.raises(ValueError, match=next(iter(section))):
            RunConfig.model_validate({**base, "grading": {"humaneval": section}})


# pass@k --------------------------------------------------------------------------------------------------------------


def test_pass_at_k_agrees_with_the_official_estimator(shared_data: Path) -> None:
    golden = json.loads((shared_data / "humaneval_exec_cases.json").read_text())
    for case in golden["pass_at_k_cases"]:
        assert pass_at_k(case["n"], case["c"], case["k"]) == pytest.approx(case["pass_at_k"], abs=1e-12), case
    mean = golden["pass_at_k_mean_case"]
    for k in (1, 5, 10):
        assert mean_pass_at_k(mean["num_samples"], mean["num_correct"], k) == pytest.approx(mean[f"pass@{k}"], abs=1e-12)
