"""Which two models a router's scores speak of, and whether the ones that are there are the same.

Runs in the driver and on router replicas: training writes the models onto the router's card, serving holds its config against it. A
router learnt how often a model is right *as it was sampled*: of another one, or of the same one asked otherwise, it knows nothing.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from firewall_ray.config.models import ModelConfig, OpenAIModelConfig, VllmModelConfig, model_path
from firewall_ray.config.run import RunConfig
from firewall_ray.engines.identity import RAW_WITH_SPACE
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ConfigError
from firewall_ray.store.layout import ArtifactStore

logger = logging.getLogger("firewall_ray")


class ModelOfPair(BaseModel):
    """One of the pair on a router's card. What is None is not known: of samples from elsewhere, or on a card of an older router."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="The run's name for the model.")
    path: str = Field(description="Hub id, folder, or the id that its server knows it by.")
    revision: str | None = Field(None, description="Of a hub id, where the config pins one (engine_kwargs.revision).")
    prompt: dict[str, Any] | None = Field(None, description="How it was asked: `PromptFormat.identity`, a template as its hash.")


def sampled_model(config: RunConfig, store: ArtifactStore, key: str) -> ModelOfPair:
    """`models.<key>` as its samples say that it was, where they lie in the store; else as far as the config says it."""
    model = config.models[key]
    recorded = (store.samples(key).settings() or {}).get("model")
    if recorded is None:  # imported outcomes, or somebody else's grades
        return ModelOfPair(key=key, path=_path(model), revision=_revision(model))
    return ModelOfPair(
        key=key,
        path=recorded.get("path") or recorded["model"],
        revision=recorded.get("engine_kwargs", {}).get("revision"),
        prompt=recorded.get("prompt", RAW_WITH_SPACE),
    )


def configured_model(key: str, model: ModelConfig, prompt: PromptFormat) -> ModelOfPair:
    """`models.<key>` as a config says that it is now. prompt: with `auto` decided."""
    return ModelOfPair(key=key, path=_path(model), revision=_revision(model), prompt=prompt.identity())


def check_models(router: str, trained: Sequence[ModelOfPair], served: Sequence[ModelOfPair], *, refuse: bool) -> None:
    """trained: the pair on the card of `router`. served: the pair as it is now, in the same order.

    Raises ConfigError naming each field that differs; without `refuse` the log does. What an older card does not say is logged too.
    """
    found = [words for there, here in zip(trained, served, strict=True) for words in _differences(there, here)]
    if found and refuse:
        raise ConfigError(
            f"The router {router} was trained for other models than these: {'; '.join(found)}. Set them as the card says, or "
            "sample, grade and train with these. Where you know that they are the same: serving.other_models: warn"
        )
    for words in found:
        logger.warning("The router %s was trained for another model: %s.", router, words)
    for there in trained:
        if there.prompt is None:
            logger.warning(
                "The card of the router %s does not say how %s was asked when it was sampled: is it asked in the same way now?",
                *(router, there.key),
            )


def _differences(there: ModelOfPair, here: ModelOfPair) -> Iterator[str]:
    """there: on the card."""
    prefix = f"models.{here.key}"
    if model_path(there.path) != model_path(here.path):
        if _name(there.path) == _name(here.path):
            # A folder that was copied, a hub id that was downloaded, a server that came to have it: the same model as a rule.
            words = "%s.path is %s, and the router was trained for %s: taken to be the same model, by its name"
            logger.warning(words, prefix, here.path, there.path)
        else:
            yield f"{prefix}.path (of a server: .model): {there.path!r} on the card, {here.path!r} in the config"
    # A card without a revision followed the branch, which a config may well pin since.
    if there.revision not in (None, here.revision):
        yield f"{prefix}.engine_kwargs.revision: {there.revision!r} on the card, {here.revision!r} in the config"
    if there.prompt is None or here.prompt is None:
        return
    # Between raw and chat every other field differs too, and says nothing more.
    other_format = there.prompt["format"] != here.prompt["format"]
    for field in ["format"] if other_format else sorted(there.prompt.keys() | here.prompt.keys()):
        one, other = there.prompt.get(field), here.prompt.get(field)
        if one != other:
            yield f"{prefix}.{'prompt' if field == 'format' else field}: {one!r} on the card, {other!r} in the config"


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()


def _path(model: ModelConfig) -> str:
    return model.model if isinstance(model, OpenAIModelConfig) else model.path


def _revision(model: ModelConfig) -> str | None:
    return model.engine_kwargs.get("revision") if isinstance(model, VllmModelConfig) else None
