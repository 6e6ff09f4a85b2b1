from pathlib import Path
from typing import Any

import pytest
import yaml

from firewall_ray.config.base import LabelDesign
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ConfigError
from firewall_ray.schemas import LABEL_DESIGNS

MINIMAL: dict[str, Any] = {
    "root": "runs/mine",
    "queries": {"tasks": {"tiny_world": {"num_train": 10}}},
    "models": {"weak": {"path": "models/weak"}, "strong": {"path": "models/strong"}},
}


def load(folder: Path, content: Any = MINIMAL, overrides: tuple[str, ...] = (), root: str | None = None) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_config(path, overrides, root)


def refused(folder: Path, *overrides: str, content: Any = MINIMAL) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, content, overrides)
    return str(caught.value)


def test_a_minimal_config_has_the_papers_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.sampling.num_samples, config.router.epochs, config.router.backbone.path) == (
        32,
        10,
        "microsoft/deberta-v3-large",
    )
    assert (config.pair.weak, config.pair.strong, config.models["weak"].engine) == ("weak", "strong", "vllm")
    assert config.grading.gsm8k.rule == "flexible"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("samplign.num_samples=4", "samplign: unknown key; did you mean sampling?"),
        ("sampling.num_sample=4", "sampling.num_sample: unknown key; did you mean sampling.num_samples?"),
        ("grading.gsm8k.rules=strict", "grading.gsm8k.rules: unknown key; did you mean grading.gsm8k.rule?"),
        ("queries.tasks.gsm8.seed=1", "queries.tasks.gsm8: unknown key; did you mean queries.tasks.gsm8k?"),
        ("queries.tasks.tiny_world.num_trian=1", "did you mean queries.tasks.tiny_world.num_train?"),
        ("models.weak.max_model_length=9", "models.weak.max_model_length: unknown key; did you mean models.weak.max_model_len?"),
        ("router.backbone.hiden_size=8", "did you mean router.backbone.hidden_size?"),
        ("xyzzy=1", "xyzzy: unknown key; known here: baselines, evaluation, grading, labels, models"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(tmp_path: Path, override: str, named: str) -> None:
    assert named in refused(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sampling.num_samples=0", "sampling.num_samples: Input should be greater than or equal to 1 (given: 0)"),
        ("sampling.num_samples=many", "sampling.num_samples"),
        ("sampling.temperature=0", "temperature 0 gives the same completion 32 times"),
        ("sampling.temperature=-1", "sampling.temperature"),
        ("sampling.temperature=.nan", "sampling.temperature"),
        (
            "grading.gsm8k.rule=lenient",
            "grading.gsm8k.rule: Input should be 'official', 'strict', 'flexible' or 'final' (given: 'lenient')",
        ),
        ("pair.strong=huge", "pair.strong is 'huge', but models has only ['strong', 'weak']"),
        ("queries.tasks={}", "queries.tasks: no task is named; there are"),
        ("models={}", "models"),
        ("models.weak.engine=tgi", "models.weak"),
        ("models.weak=3", "models.weak"),
        ("models={a/b: {path: x}}", "models.a/b"),
        ("router.designs=[softblock]", "router.designs.0"),
        ("router.designs=[]", "router.designs"),
        ("models.weak.replicas={min: 3, max: 2}", "min 3 is larger than max 2"),
        ("router.backbone.path=null", "`tokenizer` must name a tokenizer"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(tmp_path: Path, override: str, named: str) -> None:
    assert named in refused(tmp_path, override)


def test_temperature_0_is_fine_with_one_sample(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("sampling.temperature=0", "sampling.num_samples=1")).sampling.temperature == 0


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    message = refused(tmp_path, "sampling.num_samples=0", "router.epoch=3", "pair.weeak=x")
    assert message.count("\n  ") == 3


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = {key: value for key, value in MINIMAL.items() if key != "root"}
    assert "root: missing" in refused(tmp_path, content=content)


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    overrides = ("sampling.stop=['\\n', END]", "sampling.seed=1", "sampling.seed=2", "models.weak.max_model_len=null")
    config = load(tmp_path, overrides=overrides)
    assert config.sampling.stop == ["\\n", "END"]
    assert config.sampling.seed == 2
    assert config.models["weak"].max_model_len is None  # type: ignore[union-attr]


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("root=s3://b/run?scheme=http",)).root == "s3://b/run?scheme=http"


@pytest.mark.parametrize("override", ["sampling.seed", "=3"])
def test_an_override_that_is_none_is_quoted(tmp_path: Path, override: str) -> None:
    assert f"--set {override!r}" in refused(tmp_path, override)


@pytest.mark.parametrize("override", ["sampling.seed=[1", "root.deeper=1"])
def test_an_override_that_cannot_be_applied_is_named_without_its_value(tmp_path: Path, override: str) -> None:
    assert f"--set {override.partition('=')[0]}: " in refused(tmp_path, override)


def test_root_on_the_command_line_is_above_the_file_and_overrides(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("root=other",), root="third").root == "third"


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b", "a: [1", "a: b: c", "3"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "run.yaml" in refused(tmp_path, content=text)


def test_a_file_that_does_not_exist_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"jobs/configs/"):
            load_config(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00root: x")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")


def test_a_config_survives_being_saved_and_read_again(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_label_designs_of_config_and_schema_are_the_same() -> None:
    assert LabelDesign.__args__ == LABEL_DESIGNS


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("jobs/configs/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    load_config(path)
