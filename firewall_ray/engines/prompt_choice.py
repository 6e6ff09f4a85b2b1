"""Which format a model of the config is asked in. Runs in the driver."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firewall_ray.config.models import ModelConfig, VllmModelConfig
from firewall_ray.engines.prompt_length import context_length, load_tokenizer
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ConfigError

logger = logging.getLogger("firewall_ray")


def prompt_format(key: str, model: ModelConfig, recorded: Mapping[str, Any] | None = None) -> PromptFormat:
    """What `models.<key>` says, with `auto` decided. recorded: the identity of rows that are there, which have decided it already.

    Raises ModelError where `auto` has to look at a tokenizer that cannot be loaded, ConfigError without the template's file.
    """
    if not _is_chat(key, model, recorded):
        by_default = not isinstance(model, VllmModelConfig)
        return PromptFormat(keeps_space=by_default if model.keep_trailing_space is None else model.keep_trailing_space)
    template = _template(key, model.chat_template) if isinstance(model, VllmModelConfig) else None
    return PromptFormat(True, model.system_prompt, template, model.chat_template_kwargs)


def _is_chat(key: str, model: ModelConfig, recorded: Mapping[str, Any] | None) -> bool:
    if model.prompt != "auto":
        return model.prompt == "chat"
    if not isinstance(model, VllmModelConfig):
        return model.api == "chat"
    if recorded is not None:
        # Of finished samples the model itself may be out of reach by now.
        return bool(recorded["format"] == "chat")
    if model.chat_template is not None:
        return True
    context_length(key, model)  # names the field where there is no such model
    is_chat = load_tokenizer(key, model).chat_template is not None
    reason = "has a chat template" if is_chat else "has no chat template"
    words = "in its chat format" if is_chat else "with the paper's prompt"
    logger.info("model %s is asked %s, since its tokenizer %s (models.%s.prompt: auto)", key, words, reason, key)
    return is_chat


def _template(key: str, said: str | None) -> str | None:
    # Jinja has braces, a file's name has none.
    if said is None or "{" in said:
        return said
    try:
        return Path(said).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"models.{key}.chat_template: {said}: {e.strerror}. Give a file of Jinja, or the Jinja itself.") from e
