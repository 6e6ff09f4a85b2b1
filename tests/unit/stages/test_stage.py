"""A stage's ritual, and the one list of stages: what the jobs, the README and the leases make of it."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from firewall_ray.config.run import RunConfig
from firewall_ray.schemas import SCORES
from firewall_ray.stages import PIPELINE, load_stage
from firewall_ray.stages.stage import Output, Stage, StageResult, action_of, make
from firewall_ray.store.dataset import Dataset
from firewall_ray.store.layout import ArtifactStore

ROOT = Path(__file__).parents[3]
VERBS = (*PIPELINE, "import_outcomes")
ROWS = pa.table({"query_id": ["a"], "p_weak": [0.5]}, schema=SCORES)


@pytest.fixture
def scores(tmp_path: Path) -> Dataset:
    return ArtifactStore(str(tmp_path)).scores("soft_block")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    models = {"weak": {"path": "-"}, "strong": {"path": "-"}}
    return RunConfig.model_validate({"root": str(tmp_path), "queries": {"tasks": {"gsm8k": {}}}, "models": models})


def made(config: RunConfig, dataset: Dataset, settings: dict[str, Any], *, force: bool = False, fails: bool = False) -> StageResult:
    output = Output.plan("score", dataset, settings, force=force, model="weak")

    def write() -> dict[str, int]:
        if fails:
            raise ValueError("the input is wrong")
        output.begin()
        with dataset.writer() as writer:
            writer.write_table(ROWS)
        return {"rows": 1}

    return make(config, output, write)


def test_an_output_is_made_once_and_told_of_in_the_same_way_each_time(config: RunConfig, scores: Dataset) -> None:
    told = {"stage": "score", "path": scores.path, "model": "weak", "rows": 1}
    assert made(config, scores, {"n": 1}) == {**told, "action": "run"}
    assert made(config, scores, {"n": 1}) == {**told, "action": "skip"}
    assert made(config, scores, {"n": 2})["action"] == "run"
    assert made(config, scores, {"n": 2}, force=True)["action"] == "run"
    assert scores.manifest()["settings"] == {"n": 2}
    assert scores.manifest()["config"] == config.model_dump(mode="json")


def test_an_input_that_is_wrong_costs_nothing_of_an_older_output(config: RunConfig, scores: Dataset) -> None:
    made(config, scores, {"n": 1})
    with pytest.raises(ValueError, match="the input is wrong"):
        made(config, scores, {"n": 2}, fails=True)
    assert scores.require().read().equals(ROWS)


def test_a_stage_that_cannot_resume_begins_again(scores: Dataset) -> None:
    scores.begin({"n": 1})
    scores.write_bytes("half-written", b"")
    assert Output.plan("score", scores, {"n": 1}, force=False, resumes=True).action == "resume"
    again = Output.plan("score", scores, {"n": 1}, force=False)
    assert again.action == "run"
    again.begin()
    assert not scores.exists("half-written")


def test_a_stage_of_several_outputs_is_resumed_where_one_is(scores: Dataset) -> None:
    of = [Output("score", scores, {}, action) for action in ("skip", "run", "resume")]
    assert [action_of(of[:1]), action_of(of[:2]), action_of(of)] == ["skip", "run", "resume"]


def test_retry_errors_reaches_only_the_stages_that_have_error_rows(config: RunConfig) -> None:
    asked: list[dict[str, Any]] = []

    def run(config: RunConfig, store: ArtifactStore, **options: Any) -> StageResult:
        asked.append(options)
        return {}

    for retries in (True, False):
        stage = Stage("label", run, reads=(), writes=(), retries=retries)
        stage.results(config, ArtifactStore(config.root), force=True, retry_errors=True)
    assert asked == [{"force": True, "retry_errors": True}, {"force": True}]
    assert {verb for verb in VERBS if load_stage(verb).retries} == {"sample", "grade"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_stage_has_a_module_and_a_job_of_its_name(verb: str) -> None:
    assert load_stage(verb).verb == verb
    assert f'run_stage("{verb}"' in (ROOT / f"jobs/{verb}.py").read_text() or verb == "report"


def test_what_a_stage_reads_was_written_before_it() -> None:
    written: set[str] = set()
    for verb in PIPELINE:
        stage = load_stage(verb)
        assert set(stage.reads) <= written
        written |= set(stage.writes)


def test_the_table_in_the_readme_is_the_list_of_stages() -> None:
    rows = [line.strip("| \n").split(" | ") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    of_verb = {row[0].strip("`"): row for row in rows if row[0].strip("`") in PIPELINE}
    assert tuple(of_verb) == PIPELINE
    for verb, (_, reads, writes, code) in of_verb.items():
        stage = load_stage(verb)
        assert set(re.findall(r"`(\w+)/", reads)) == set(stage.reads)
        assert set(re.findall(r"`(\w+)/", writes)) == {folder for folder in stage.writes if not folder.startswith("_")}
        assert f"(firewall_ray/stages/{verb}.py)" in code
