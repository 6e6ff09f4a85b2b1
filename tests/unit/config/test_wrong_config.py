"""Configs and flags as they come out of other hands: what they would silently have meant, and that no secret is repeated."""

import traceback
from pathlib import Path
from typing import Any

import pytest

from firewall_ray.config.api_key import read_api_key
from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import ConfigError
from firewall_ray.store.layout import ArtifactStore

LINES = """\
root: runs/mine
queries: {tasks: {tiny_world: {num_train: 10}}}
models:
  weak: {path: models/weak}
  strong: {path: models/strong}
"""
SECRET = "sk-proj-ABC0123456789abcdefXYZ"


def load(folder: Path, text: str = LINES, *overrides: str) -> RunConfig:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(folder / "run.yaml", overrides)


def refusal(folder: Path, text: str = LINES, *overrides: str) -> str:
    """The message; no part of the exception, nor of what caused it, holds the secret."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    return str(caught.value)


# YAML ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("router: {epochs: 1}\nrouter: {epochs: 2}\n", "line 7, column 1: the key 'router' is there already, in line 6"),
        ("router:\n  epochs: 1\n  seed: 0\n  epochs: 2\n", "line 9, column 3: the key 'epochs' is there already, in line 7"),
        ("baselines: {knn: {num_neighbours: [1], num_neighbours: [2]}}\n", "line 6, column 40: the key 'num_neighbours'"),
        ("'root': other\n", "line 6, column 1: the key 'root' is there already, in line 1"),
        ("paper: {pairs: [{weak: a, weak: b}]}\n", "the key 'weak' is there already"),
        ("1: a\n", "line 6, column 1: the key '1' is no text to YAML; put it in quotes"),
        ("serving: {examples: {no: Why}}\n", "the key 'no' is no text to YAML"),
        ("---\nroot: other\n", "line 6, column 1: expected a single document"),
    ],
)
def test_a_key_that_comes_twice_or_is_no_text_is_named_with_its_line(tmp_path: Path, more: str, named: str) -> None:
    assert named in refusal(tmp_path, LINES + more)


def test_a_key_that_comes_twice_in_an_override_is_named(tmp_path: Path) -> None:
    assert "--set router: " in refusal(tmp_path, LINES, "router={epochs: 1, epochs: 2}")


def test_what_stands_beside_a_merge_key_overrides_what_it_brings(tmp_path: Path) -> None:
    text = LINES.replace("  weak: {path: models/weak}", "  weak: &w {path: models/weak, max_num_seqs: 4}")
    text = text.replace(
        "  strong: {", "  third: &t {<<: *w, path: models/third}\n  fourth: {<<: *t, path: models/fourth}\n  strong: {"
    )
    models: Any = load(tmp_path, text).models
    assert (models["third"].path, models["third"].max_num_seqs) == ("models/third", 4)
    assert (models["fourth"].path, models["fourth"].max_num_seqs) == ("models/fourth", 4)


def test_a_broken_line_is_named_and_not_quoted(tmp_path: Path) -> None:
    assert "line 7" in refusal(tmp_path, LINES + f'serving: {{api_keys: "{SECRET}\n')
    assert "--set serving.api_keys" in refusal(tmp_path, LINES, f'serving.api_keys="{SECRET}')


# Misspelt fields -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "models.openai={engine: openai, base_ur: x, model: m}",
            "models.openai.base_ur: unknown key; did you mean models.openai.base_url?",
        ),
        ("models.openai={path: x, max_model_lenght: 3}", "did you mean models.openai.max_model_len?"),
        ("models.vllm={path: x, pth: 3}", "models.vllm.pth: unknown key; did you mean models.vllm.path?"),
        (
            "models.openai={engine: openai, base_url: 'http://x/v1', model: 3}",
            "models.openai.model: Input should be a valid string",
        ),
        ("queries.tasks.custom.openai={source: x, grder: exact}", "did you mean queries.tasks.custom.openai.grader?"),
        ("paper.plan.shapes.vllm={hiden_size: 3}", "did you mean paper.plan.shapes.vllm.hidden_size?"),
        ("serving.api_keys=[{nam: a, sha256: b}]", "serving.api_keys.0.nam: unknown key; did you mean serving.api_keys.0.name?"),
        ("baselines.embedding.openai={modle: m}", "did you mean baselines.embedding.openai.model?"),
    ],
)
def test_a_misspelt_field_of_a_model_called_like_an_engine_names_the_right_one(tmp_path: Path, override: str, named: str) -> None:
    assert named in refusal(tmp_path, LINES, override)


# Servers elsewhere ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["models.bought.base_url", "baselines.embedding.openai.base_url"])
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("api.example.com/v1", "must begin with http:// or https://; write https://api.example.com/v1"),
        ("localhost:8000/v1/", "write http://localhost:8000/v1"),
        ("", "is empty; write one up to and including /v1"),
        ("ftp://api.example.com/v1", "write https://api.example.com/v1"),
        ("https:/api.example.com/v1", "is no address of a server"),
        ("https://", "is no address of a server"),
        ("https://api.example.com:port/v1", "is no address of a server"),
        ("https://api.example.com/v1 /x", "is no address of a server"),
        ("https://api.example.com/v1?api-version=1", "must end before ? and #, since paths are appended to it; write https://api.example.com/v1"),
        (f"https://api.example.com/v1?key={SECRET}", "write https://api.example.com/v1"),
        ("https://api.example.com/v1#top", "write https://api.example.com/v1"),
        (f"https://{SECRET}@api.example.com/v1", "holds a user or a password; write https://api.example.com/v1"),
        (f"https://me:{SECRET}@api.example.com/v1", "holds a user or a password; write https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "must end before /chat/completions, which is appended to it; write https://api.example.com/v1"),
        ("https://api.example.com/v1/Completions/", "write https://api.example.com/v1"),
        ("https://api.example.com/v1/embeddings", "write https://api.example.com/v1"),
        (SECRET, "is no address of a server"),
        (f"[{SECRET}]", "Input should be a valid string"),
    ],
)  # fmt: skip
def test_a_base_url_that_no_request_could_use_is_refused_with_the_right_one(
    tmp_path: Path, field: str, url: str, named: str
) -> None:
    overrides = ["models.bought={engine: openai, model: m, base_url: 'http://x/v1'}", f"{field}={url or repr(url)}"]
    message = refusal(tmp_path, LINES, *overrides)
    assert f"  {field}: " in message
    assert named in message


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        (" http://10.0.0.7:8000/v1// ", "http://10.0.0.7:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://vllm:8000", "http://vllm:8000"),
        ("https://api.example.com/openai/deployments/completions-of-mine", "https://api.example.com/openai/deployments/completions-of-mine"),
    ],
)  # fmt: skip
def test_a_base_url_loses_blanks_and_the_slash_at_its_end(given: str, kept: str) -> None:
    assert OpenAIModelConfig(engine="openai", model="m", base_url=given).base_url == kept


@pytest.mark.parametrize("field", ["models.bought.api_key_env", "baselines.embedding.openai.api_key_env"])
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        SECRET.replace("-", "_"),
        f"gsk_{SECRET[8:]}",
        SECRET[8:],
        "$OPENAI_API_KEY",
        "'OPENAI KEY'",
        "9KEY",
        "''",
        f"[{SECRET}]",
    ],
)
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(tmp_path: Path, field: str, value: str) -> None:
    message = refusal(tmp_path, LINES, "models.bought={engine: openai, model: m, base_url: 'http://x/v1'}", f"{field}={value}")
    assert field in message
    assert value.strip("'[]") not in message.replace("OPENAI_API_KEY", "") or value == "''"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "_key", "hf_token", "Key2", "TOGETHER_AI_KEY_OF_THE_SECOND_TEAM_2"])
def test_a_variables_name_is_taken(name: str) -> None:
    assert OpenAIModelConfig(engine="openai", model="m", base_url="http://x/v1", api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    "value", [SECRET, f"{{a: {SECRET}}}", f"[{SECRET}]", f"[{{name: me, sha256: {SECRET}}}]", f"[{{name: me, key: {SECRET}}}]"]
)
def test_a_callers_key_in_place_of_its_hash_is_refused_and_not_repeated(tmp_path: Path, value: str) -> None:
    assert "serving.api_keys" in refusal(tmp_path, LINES, f"serving.api_keys={value}")
    assert "serving.api_keys" in refusal(tmp_path, LINES, f"serving.api_keys={value}", "serving.api_keys.0.name=me")


@pytest.mark.parametrize("value", [f"{SECRET}\n", f" {SECRET}\r\n", f"{SECRET}"])
def test_blanks_and_line_ends_around_a_key_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("THE_KEY", value)
    assert read_api_key("THE_KEY", "models.bought.api_key_env") == SECRET


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (f"{SECRET}\n{SECRET}", "has a blank, a line end"),
        (f"{SECRET} {SECRET}", "has a blank"),
        (f"{SECRET}\x07x", "has a blank, a line end, or a character"),
        (f"{SECRET}é", "has a blank, a line end, or a character beyond ASCII"),
        (f"Bearer {SECRET}", "begins with `Bearer`"),
        (f'"{SECRET}"', "is in quotes"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_by_its_variable(monkeypatch: pytest.MonkeyPatch, value: str, named: str) -> None:
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(
        ConfigError, match=rf"^models\.x\.api_key_env: the value of the environment variable THE_KEY {named}"
    ) as caught:
        read_api_key("THE_KEY", "models.x.api_key_env")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# ROOT ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "named"),
    [
        ("", "is empty"),
        ("  ", "is empty, or has blanks around it"),
        (" runs/mine", "has blanks around it"),
        ("runs\n", "has blanks around it"),
        ("s3:/bucket/run", "is no URI. Write s3://bucket/run"),
        ("gs:bucket/run", "is no URI. Write gs://bucket/run"),
        ("file:/tmp/run", "Write file:///tmp/run"),
        ("s4://bucket/run", "cannot be opened"),
        ("http://bucket/run", "cannot be opened"),
        ("s3://", "names no folder"),
        ("$HOME/runs", "has the variable $HOME"),
        ("runs/${NAME}", "has the variable ${NAME}"),
    ],
)
def test_a_root_that_would_become_a_strange_folder_is_refused(
    root: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^root: ") as caught:
        ArtifactStore(root).check_writable()
    assert named in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_root_that_is_a_file_or_below_one_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt is a file"):
        ArtifactStore(f"{tmp_path}/notes.txt{below}").check_writable()
    assert (tmp_path / "notes.txt").read_text() == "mine"
