"""The calibration's grid, draw and ranking, with hand-written grades in the place of sampling and grading."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from handmade import grade, make_config, query, write
from rich.console import Console

from firewall_ray.config.run import RunConfig
from firewall_ray.errors import ConfigError
from firewall_ray.paper import calibration
from firewall_ray.paper.calibration import Setting, drawn_queries, run_calibration, settings_of, with_setting
from firewall_ray.paper.show_targets import print_calibration
from firewall_ray.store.layout import ArtifactStore

# Of four samples, how many are right: by temperature and rule.
RIGHT = {(0.7, "flexible"): "1111", (0.7, "strict"): "0000", (1.0, "flexible"): "1000", (1.0, "strict"): "1100"}


def config(root: Path, **calibrated: Any) -> RunConfig:
    models = {key: {"path": "-", "prompt": "raw"} for key in ("weak", "strong")}
    section = {"num_queries": 2, "stop": [True], "keep_trailing_space": [True], "gsm8k_rules": ["flexible", "strict"]}
    targets = {"weak": {"gsm8k": 30, "triviaqa": 50}}
    return make_config(str(root), models=models, paper={"targets": targets, "calibration": section | calibrated})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """Queries of three tasks; sampling counts itself, grading writes RIGHT for GSM8K and half right for TriviaQA."""
    store = ArtifactStore(str(tmp_path))
    rows = [query(f"{task}{i}", task=task, split="test") for task in ("gsm8k", "triviaqa", "humaneval") for i in (3, 1, 2)]
    write(store.queries(), [*rows, query("gsm8k0", task="gsm8k")])

    def grading(changed: RunConfig, place: ArtifactStore, **_: Any) -> list[dict[str, Any]]:
        right = {"gsm8k": RIGHT[changed.sampling.temperature, changed.grading.gsm8k.rule], "triviaqa": "0101"}
        rows = place.queries().read(["query_id", "task"]).to_pylist()
        write(place.grades("weak"), [grade(row["query_id"], right[row["task"]]) for row in rows])
        return [{"stage": "grade"}]

    monkeypatch.setattr(calibration, "run_sampling", lambda changed, place, **_: [{"stage": "sample", "to": place.setting.folder}])
    monkeypatch.setattr(calibration, "run_grading", grading)
    return store


def test_settings_are_ranked_by_their_mean_distance_to_the_targets(store: ArtifactStore, tmp_path: Path) -> None:
    calibrated, results = run_calibration(config(tmp_path), store)
    # TriviaQA is 0 away in all. GSM8K: |25 - 30| / 2, |50 - 30| / 2, |0 - 30| / 2, |100 - 30| / 2 points.
    found = [(each.setting.temperature, each.setting.rule, round(100 * each.distance, 6)) for each in calibrated]
    assert found == [(1.0, "flexible", 2.5), (1.0, "strict", 10.0), (0.7, "strict", 15.0), (0.7, "flexible", 35.0)]
    with (tmp_path / "calibration/calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert (rows[0]["temperature"], rows[0]["rule"], rows[0]["gsm8k_measured"], rows[0]["gsm8k_target"]) == (
        *("1.0", "flexible", "0.25", "0.3"),
    )
    full = json.loads((tmp_path / "calibration/calibration.json").read_text())
    assert [each["distance"] for each in full["settings"]] == [each.distance for each in calibrated]
    assert {result["to"] for result in results if result["stage"] == "sample"} == {"t0.7-space-stop-n4", "t1-space-stop-n4"}


def test_few_test_queries_of_the_tasks_with_targets_are_drawn_and_more_hold_fewer(store: ArtifactStore, tmp_path: Path) -> None:
    run_calibration(config(tmp_path), store)
    fewer = drawn_queries(store).read(["query_id"])["query_id"].to_pylist()
    assert fewer == ["gsm8k1", "gsm8k2", "triviaqa1", "triviaqa2"]  # the lowest ids, no train, no HumanEval
    run_calibration(config(tmp_path), store, num_queries=3)
    assert set(fewer) < set(drawn_queries(store).read(["query_id"])["query_id"].to_pylist())


def test_the_default_grid_samples_eight_ways_and_grades_each_by_three_rules(tmp_path: Path) -> None:
    models = {key: {"path": "-", "prompt": "raw"} for key in ("weak", "strong")}
    run = make_config(str(tmp_path), models=models)
    grid = settings_of(run, "weak", has_gsm8k=True)
    assert len({setting.folder for setting in grid}) == 8  # two temperatures, the space, stop strings
    assert len(set(grid)) == len(grid) == 24
    assert len(settings_of(run, "weak", has_gsm8k=False)) == 8  # no other task has rules to try
    chat = make_config(str(tmp_path), models={key: {"path": "-", "prompt": "chat"} for key in ("weak", "strong")})
    assert len(settings_of(chat, "weak", has_gsm8k=True)) == 6  # neither space nor stop strings reach a chat


def test_a_setting_stands_in_the_place_of_the_configs_own(tmp_path: Path) -> None:
    run = config(tmp_path)
    changed = with_setting(run, "weak", Setting(0.7, False, False, 4, "final"))
    assert (changed.sampling.temperature, changed.sampling.num_samples, changed.sampling.stop) == (0.7, 4, [])
    assert changed.models["weak"].keep_trailing_space is False
    assert changed.models["strong"] == run.models["strong"]
    assert changed.grading.gsm8k.rule == "final"
    assert with_setting(run, "weak", Setting(0.7, True, True, 4, "final")).sampling.stop is None


def test_the_table_names_settings_and_how_near_they_are(store: ArtifactStore, tmp_path: Path) -> None:
    calibrated, _ = run_calibration(config(tmp_path), store)
    console = Console(width=140)
    with console.capture() as captured:
        print_calibration(calibrated, console)
    first = next(line for line in captured.get().splitlines() if "flexible" in line)
    assert first.split() == ["1", "kept", "yes", "flexible", "25.00", "(-5.00)", "50.00", "(+0.00)", "2.50"]


def test_a_model_without_targets_and_targets_without_queries_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'strong': it is none of the paper's.*paper\.targets\.strong"):
        run_calibration(config(tmp_path, model="strong"), store)
    other = config(tmp_path).model_copy(update={"paper": config(tmp_path).paper.model_copy(update={"targets": {"weak": {"x": 1}}})})
    with pytest.raises(ConfigError, match=r"no test queries of x"):
        run_calibration(other, store)
