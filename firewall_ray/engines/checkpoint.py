"""A vLLM model's files as transformers loads them, with what `engine_kwargs` says of them: the revision that vLLM will serve, its
tokenizer where that is another's, code that comes with the model where that is trusted.

Runs in the driver and on actors that read a model's hidden states. Loading raises what transformers raises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from firewall_ray.config.models import VllmModelConfig, model_path


@dataclass(frozen=True)
class Checkpoint:
    """path: a folder, or a hub id. model_arguments: of `from_pretrained`, for the model and its configuration."""

    path: str
    tokenizer_path: str
    model_arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)  # a hub's token may be among them
    tokenizer_arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the configuration's fields

    @classmethod
    def at(cls, path: str) -> "Checkpoint":
        """A folder or hub id of which nothing else is said."""
        return cls(path, path)

    @classmethod
    def of(cls, model: VllmModelConfig) -> "Checkpoint":
        """With vLLM's defaults: the tokenizer is the model's own, at the model's revision."""
        said = model.engine_kwargs
        path = model_path(model.path)
        shared = {"trust_remote_code": said.get("trust_remote_code"), "token": said.get("hf_token")}
        revision, code = said.get("revision"), said.get("code_revision")
        overrides = said.get("hf_overrides")
        return cls(
            path,
            model_path(said.get("tokenizer") or path),
            _given({**shared, "revision": revision, "code_revision": code}),
            _given({**shared, "revision": said.get("tokenizer_revision") or revision, "code_revision": code}),
            # vLLM also takes a function here, which only vLLM can apply.
            overrides if isinstance(overrides, Mapping) else {},
        )

    def said(self) -> dict[str, Any]:
        """What decides its content beside the path, for fingerprints; empty where nothing is said. Without the token."""
        tokenizer = {} if self.tokenizer_path == self.path else {"path": self.tokenizer_path}
        parts = {"model": self.model_arguments, "tokenizer": {**tokenizer, **self.tokenizer_arguments}, "overrides": self.overrides}
        # A token changes nothing of what is read, and settings are kept in manifests, which anybody may read.
        public = {name: {key: value for key, value in part.items() if key != "token"} for name, part in parts.items()}
        return {name: part for name, part in public.items() if part}

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_path, **self.tokenizer_arguments)

    def config(self) -> Any:
        """A transformers configuration, changed as vLLM will change it."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.path, **self.model_arguments)
        _update(config, self.overrides)
        return config


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _update(config: Any, overrides: Mapping[str, Any]) -> None:
    """Also the fields of a configuration inside, such as a multimodal model's `text_config`; other mappings are replaced whole."""
    from transformers import PretrainedConfig

    for name, value in overrides.items():
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig) and isinstance(value, Mapping):
            _update(inner, value)
        else:
            setattr(config, name, value)
