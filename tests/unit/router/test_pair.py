"""What a router's card says of its models, and which config it is not served with."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_router import make_card

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.router import RouterConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.identity import sample_settings
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.errors import ConfigError
from firewall_ray.router.card import parse_card
from firewall_ray.router.pair import ModelOfPair, check_models, configured_model, sampled_model
from firewall_ray.store.layout import ArtifactStore

CHAT = PromptFormat(True, "Be short.", "{{ messages }}", {"enable_thinking": False})


def model(prompt: PromptFormat | None = CHAT, **changes: Any) -> ModelOfPair:
    identity = None if prompt is None else prompt.identity()
    return ModelOfPair.model_validate({"key": "weak", "path": "org/small", "prompt": identity, **changes})


def run_config(root: Path, **weak: Any) -> RunConfig:
    models = {"weak": {"path": "org/small", **weak}, "strong": {"engine": "openai", "base_url": "http://x/v1", "model": "big"}}
    return RunConfig.model_validate({"root": str(root), "queries": {"tasks": {"tiny_world": {}}}, "models": models})


def differences(there: ModelOfPair, here: ModelOfPair) -> str:
    """What the refusal says of the weak model."""
    with pytest.raises(ConfigError) as refused:
        check_models("soft_block", [there, model()], [here, model()], refuse=True)
    found = re.search(r"than these: (.*)\. Set them", str(refused.value))
    assert found
    return found[1]


# The card -------------------------------------------------------------------------------------------------------------


def test_the_card_says_how_the_samples_say_that_their_model_was_asked(tmp_path: Path) -> None:
    """Also where the config says something else by now."""
    config, store = run_config(tmp_path, path="org/other", prompt="raw"), ArtifactStore(str(tmp_path))
    sampled = VllmModelConfig(path="org/small", engine_kwargs={"revision": "abc"})
    spec = SamplingSpec(8, 1.0, 1.0, 0, {}, {}, CHAT)
    store.samples("weak").begin(sample_settings(sampled, spec))
    store.samples("strong").begin(sample_settings(config.models["strong"], spec))
    assert sampled_model(config, store, "weak") == model(revision="abc")
    assert sampled_model(config, store, "strong") == model(key="strong", path="big")


def test_samples_from_before_there_was_a_choice_were_raw_with_the_space(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.samples("weak").begin({"model": {"path": "org/small"}, "sampling": {}})
    recorded = sampled_model(run_config(tmp_path), store, "weak")
    assert recorded.prompt == PromptFormat(keeps_space=True).identity()


def test_without_samples_of_ours_the_card_says_that_it_does_not_know(tmp_path: Path) -> None:
    config = run_config(tmp_path, engine_kwargs={"revision": "abc"}, prompt="raw")
    assert sampled_model(config, ArtifactStore(str(tmp_path)), "weak") == model(None, revision="abc")


def test_a_card_from_before_there_was_a_choice_still_loads() -> None:
    card = json.loads(make_card(RouterConfig()).model_dump_json())
    card["weak"] = {"key": "weak", "path": "org/small"}
    assert parse_card(json.dumps(card), "router.json").weak == model(None)


# The config against it ------------------------------------------------------------------------------------------------


def test_the_pair_that_was_sampled_is_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    check_models("soft_block", [model(), model()], [model(), model()], refuse=True)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (model(path="org/large"), "models.weak.path (of a server: .model): 'org/small' on the card, 'org/large' in the config"),
        (model(PromptFormat()), "models.weak.prompt: 'chat' on the card, 'raw' in the config"),
        (
            model(PromptFormat(True, None, CHAT.template, CHAT.template_kwargs)),
            "models.weak.system_prompt: 'Be short.' on the card, None in the config",
        ),
        (
            model(PromptFormat(True, CHAT.system_prompt, CHAT.template, {"enable_thinking": True})),
            "models.weak.chat_template_kwargs: {'enable_thinking': False} on the card, {'enable_thinking': True} in the config",
        ),
        (
            model(PromptFormat(True, CHAT.system_prompt, None, CHAT.template_kwargs)),
            f"models.weak.chat_template: {CHAT.identity()['chat_template']!r} on the card, None in the config",
        ),
    ],
)
def test_a_model_that_is_another_or_is_asked_otherwise_is_refused_by_field(here: ModelOfPair, says: str) -> None:
    assert differences(model(), here) == says


def test_a_raw_prompt_with_and_without_its_space_are_two() -> None:
    says = "models.weak.keep_trailing_space: True on the card, False in the config"
    assert differences(model(PromptFormat(keeps_space=True)), model(PromptFormat())) == says


def test_a_revision_that_was_pinned_stays_and_one_that_is_pinned_later_is_no_other(caplog: pytest.LogCaptureFixture) -> None:
    assert "revision: 'abc' on the card, None in the config" in differences(model(revision="abc"), model())
    check_models("soft_block", [model()], [model(revision="abc")], refuse=True)
    assert caplog.records == []


def test_a_refusal_names_the_way_out_and_warn_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    pair = [model()], [model(path="org/large")]
    with pytest.raises(ConfigError, match=r"serving\.other_models: warn"):
        check_models("soft_block", *pair, refuse=True)
    check_models("soft_block", *pair, refuse=False)
    (record,) = caplog.records
    assert "'org/small' on the card, 'org/large' in the config" in record.message


@pytest.mark.parametrize("path", ["/models/small", "./small/", "other/Small"])
def test_a_model_at_another_place_is_told_by_its_name(path: str, caplog: pytest.LogCaptureFixture) -> None:
    check_models("soft_block", [model()], [model(path=path)], refuse=True)
    (record,) = caplog.records
    assert (record.levelno, "by its name" in record.message) == (logging.WARNING, True)


def test_of_an_older_card_the_log_says_that_nothing_can_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    check_models("soft_block", [model(None)], [model()], refuse=True)
    (record,) = caplog.records
    assert "does not say how weak was asked" in record.message
    assert differences(model(None), model(path="org/large")).startswith("models.weak.path")


def test_auto_is_what_the_card_says_so_that_it_never_differs() -> None:
    """The model's tokenizer is not looked at: there is no `org/small`."""
    config = VllmModelConfig(path="org/small", keep_trailing_space=True)
    for sampled in (PromptFormat(keeps_space=True), PromptFormat(is_chat=True)):
        served = configured_model("weak", config, prompt_format("weak", config, sampled.identity()))
        check_models("soft_block", [model(sampled)], [served], refuse=True)
