"""jobs/paper.py, small: three real models through every stage, another pair, another backbone, and the tables."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.paper.artifact import run_paper
from firewall_ray.paper.calibration import run_calibration
from firewall_ray.paper.stages import steps
from firewall_ray.schemas import QUALITIES
from firewall_ray.store.layout import ArtifactStore

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with fewer queries, samples, epochs and routers."""
    folder = tmp_path_factory.mktemp("paper")
    config = yaml.safe_load((REPOSITORY / "jobs/configs/paper_mini.yaml").read_text())
    config["root"] = str(folder / "run")
    sizes = {"num_train": 90, "num_validation": 20, "num_test": 40}
    config["queries"]["tasks"] |= {"tiny_facts": sizes, "tiny_sums": sizes}
    config["queries"]["tasks"]["tiny_letters"]["num_test"] = 20
    config["sampling"]["num_samples"] = 4
    config["router"] |= {"designs": ["soft_block", "hard_block", "weak_pass_rate"], "epochs": 1}
    config["baselines"]["names"] = ["margin_sampling", "knn", "hybrid_llm_trans"]
    config["baselines"]["bart_score"] |= {"epochs": 1, "hidden_size": 16}
    config["paper"]["bart_score_queries"] = 15
    config["evaluation"] = {"num_bootstrap": 50}
    config["paper"]["pairs"] = [{"weak": "middle", "strong": "strong"}]
    config["paper"]["backbones"].pop("llama-scratch")
    config["paper"]["backbone_designs"] = ["soft_block"]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def finished(config_file: Path, ray_cluster: None) -> RunConfig:
    config = load_config(config_file)
    store = ArtifactStore(config.root)
    for stage in steps().values():
        stage(config, store)
    run_paper(config, store)
    return config


def test_every_stage_leaves_what_the_tables_need(finished: RunConfig) -> None:
    store = ArtifactStore(finished.root)
    assert store.children("samples") == ["middle", "strong", "weak"]
    assert store.children("pairs/middle-strong") == ["labels", "scores"]
    assert store.children("backbones/weak-model/scores") == ["soft_block"]
    with (Path(finished.root) / "paper/table_2_extended.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"tiny_facts", "tiny_sums", "tiny_letters", "all"}
    assert "Margin Sampling" in {row["router"] for row in rows}
    names = sorted(path.name for path in (Path(finished.root) / "paper").glob("figure_*.png"))
    # BARTScore on both splits, Hybrid LLM, Margin Sampling, hard and soft blocking on both pairs, the weak pass rate.
    assert [int(name.split("_")[1]) for name in names] == [3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15]
    assert len(list((Path(finished.root) / "paper").glob("curves_*.png"))) == 3 * 3  # kinds, tasks


def test_figure_3_has_a_drawn_part_of_every_tasks_test_queries_and_figure_4_what_was_trained_on(finished: RunConfig) -> None:
    root = Path(finished.root)
    figures = json.loads((root / "paper/paper.json").read_text())["figures"]
    assert ArtifactStore(finished.root).baseline("qualities_test/weak", QUALITIES).require().num_rows() == 3 * 15
    for number, tasks in (("3", {"tiny_facts", "tiny_sums", "tiny_letters"}), ("4", {"tiny_facts", "tiny_sums"})):
        assert figures[number].keys() == {"weak", "strong"}
        for of_model in figures[number].values():
            assert of_model.keys() == tasks
            assert {sum(row["num_responses"] for row in rows) for rows in of_model.values()} == {15 * 4}


def test_another_weak_model_has_its_own_margins_and_the_same_strong_samples(finished: RunConfig) -> None:
    root = Path(finished.root)
    places = [ArtifactStore(str(root / place)) for place in ("", "pairs/middle-strong")]
    weak, middle = (place.labels().read().to_pandas().set_index("query_id") for place in places)
    # Nothing is trained on the other pair: its weak model was asked the test queries alone.
    test = weak[weak.split == "test"]
    assert set(middle.index) == set(test.index)
    middle = middle.loc[test.index]
    assert middle.pass_rate_strong.tolist() == test.pass_rate_strong.tolist()
    assert middle.pass_rate_weak.tolist() != test.pass_rate_weak.tolist()
    own, anew = (place.scores("margin_sampling").read().to_pandas().set_index("query_id").p_weak for place in places)
    assert set(anew.index) == set(test.index)
    assert anew.loc[test.index].tolist() != own.loc[test.index].tolist()


def test_the_second_run_skips_every_stage(finished: RunConfig) -> None:
    store = ArtifactStore(finished.root)
    results = [result for stage in steps().values() for result in stage(finished, store)]
    assert {result["action"] for result in [*results, run_paper(finished, store)]} == {"skip"}


def test_the_job_makes_the_tables_of_what_is_there(finished: RunConfig, config_file: Path) -> None:
    command = [sys.executable, "jobs/paper.py", "--config", str(config_file), "--tables-only"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    (result,) = json.loads(done.stdout)["stages"]
    assert (result["action"], result["tables"]) == ("skip", 4)
    assert "The paper's claims" in done.stderr
    assert str(Path(finished.root) / "paper/paper.html") in done.stderr


def test_the_plan_after_the_run_uses_what_was_measured(finished: RunConfig, config_file: Path) -> None:
    command = [sys.executable, "jobs/paper.py", "--config", str(config_file), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    (plan,) = json.loads(done.stdout)["stages"]
    rows = {row["stage"]: row for row in plan["rows"]}
    assert rows["sample middle"]["queries"] == 100  # its test split
    assert "measured here" in rows["sample middle"]["arithmetic"]


def test_a_calibration_samples_once_for_all_rules_and_goes_on_where_it_stopped(config_file: Path, ray_cluster: None) -> None:
    config = load_config(config_file)
    grid = {"num_queries": 6, "num_samples": 2, "temperatures": [0.7], "keep_trailing_space": [True, False], "stop": [True]}
    paper = {"targets": {"weak": {"tiny_facts": 50.0}}, "calibration": grid}
    # Asked raw: in a chat no prompt ends in a space, and there would be nothing to choose.
    models = {key: {**model.model_dump(), "prompt": "raw"} for key, model in config.models.items()}
    changed = {"root": f"{config.root}_calibrated", "paper": paper, "models": models}
    config = RunConfig.model_validate({**config.model_dump(), **changed})
    store = ArtifactStore(config.root)
    calibrated, results = run_calibration(config, store)
    assert {each.setting.keeps_space for each in calibrated} == {True, False}
    assert [each.distance for each in calibrated] == sorted(each.distance for each in calibrated)
    assert all(each.compared[0].num_queries == 6 for each in calibrated)
    again, results = run_calibration(config, store)
    assert {result["action"] for result in results} == {"skip"}
    assert again == calibrated
