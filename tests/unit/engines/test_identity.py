"""Which samples are reused: rows of other settings never, rows that another machine would make just so always."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firewall_ray.config.models import OpenAIModelConfig, VllmModelConfig
from firewall_ray.engines.identity import NOT_CONTENT, SERVER_ONLY, SPEED_ONLY, merged, same_samples, sample_settings
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.engines.vllm import server_arguments
from firewall_ray.errors import ArtifactError
from firewall_ray.store.layout import ArtifactStore


def spec(**max_tokens: int) -> SamplingSpec:
    return SamplingSpec(32, 1.0, 1.0, 0, dict.fromkeys(max_tokens, ("\n",)), max_tokens)


def vllm(**settings: Any) -> VllmModelConfig:
    return VllmModelConfig.model_validate({"path": "m", **settings})


def settings(model: Any = None, **max_tokens: int) -> dict[str, Any]:
    return sample_settings(model or vllm(), spec(**(max_tokens or {"gsm8k": 256})))


def reused(recorded: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return same_samples("weak", "runs/mine/samples/weak")(recorded, wanted)


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_the_settings_of_a_task_are_remembered_while_other_tasks_are_sampled(tmp_path: Path) -> None:
    """GSM8K at 256 tokens, then TriviaQA alone, then GSM8K at 1,024: the last one must not get the rows of the first."""
    samples = ArtifactStore(str(tmp_path)).samples("weak")
    samples.begin(merged(None, settings(gsm8k=256)))
    samples.finish({}, {})
    trivia = settings(triviaqa=32)
    assert samples.plan(trivia, costly=True, reusable=same_samples("weak", samples.path)) == "skip"  # its rows are added
    samples.begin(merged(samples.manifest()["settings"], trivia), keep_files=True)
    samples.finish({}, {})
    with pytest.raises(ArtifactError) as caught:
        samples.plan(settings(gsm8k=1_024), costly=True, reusable=same_samples("weak", samples.path))
    said = str(caught.value)
    assert said.startswith(
        f"samples: {samples.path} was made with other settings (sampling.max_tokens of task gsm8k: 256 there, 1024 now)"
    )
    assert "--force" in said
    assert "--root" in said
    assert samples.plan(settings(gsm8k=1_024), force=True, costly=True, reusable=same_samples("weak", samples.path)) == "run"


def test_the_union_of_a_record_keeps_every_task_once() -> None:
    both = merged(settings(gsm8k=256, triviaqa=32), settings(triviaqa=32, humaneval=512))
    assert both["sampling"]["max_tokens"] == {"gsm8k": 256, "triviaqa": 32, "humaneval": 512}
    assert both["sampling"]["stop"].keys() == {"gsm8k", "triviaqa", "humaneval"}
    assert both["sampling"]["num_samples"] == 32
    assert merged(None, settings()) == settings()


def test_a_stop_string_is_compared_task_by_task() -> None:
    changed = settings(gsm8k=256)
    changed["sampling"]["stop"]["gsm8k"] = ["Q:"]
    with pytest.raises(ArtifactError, match=r"sampling\.stop of task gsm8k: \['\\n'\] there, \['Q:'\] now"):
        reused(settings(gsm8k=256), changed)
    assert reused(settings(triviaqa=256), changed)


CONTENT: dict[str, Any] = {
    "quantization": "fp8",
    "revision": "v2",
    "code_revision": "v2",
    "tokenizer": "t",
    "tokenizer_revision": "v2",
    "trust_remote_code": True,
    "hf_overrides": {"rope_scaling": {"factor": 2}},
    "enable_lora": True,
    "default_mm_loras": {"a": "b"},
    "kv_cache_dtype": "fp8",
    "load_format": "dummy",
    "disable_sliding_window": True,
    "seed": 3,
    "what_comes_next": 1,
}


# How it is asked -----------------------------------------------------------------------------------------------------


def test_samples_of_another_prompt_format_are_not_reused() -> None:
    chat = sample_settings(vllm(), replace(spec(gsm8k=256), prompt=PromptFormat(is_chat=True)))
    brief = sample_settings(vllm(), replace(spec(gsm8k=256), prompt=PromptFormat(is_chat=True, system_prompt="Be brief.")))
    for recorded, wanted in ((chat, settings()), (settings(), chat), (chat, brief)):
        with pytest.raises(ArtifactError, match=r"\(models\.weak\.prompt: .* there, .* now\)"):
            reused(recorded, wanted)
    assert reused(brief, brief)


def test_a_record_that_says_nothing_of_the_prompt_is_of_the_raw_one_with_its_space() -> None:
    older = settings()
    del older["model"]["prompt"]
    assert reused(older, raw_with_space())
    with pytest.raises(ArtifactError, match="keep_trailing_space"):
        reused(older, settings())


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"max_model_len": 2_048},  # it truncates
        {"dtype": "float16"},
        {"path": "n"},
        *({"engine_kwargs": {name: value}} for name, value in CONTENT.items()),
    ],
    ids=str,
)
def test_what_changes_what_a_model_says_is_refused_by_name(change: dict[str, Any]) -> None:
    inner = change.get("engine_kwargs")
    name = f"engine_kwargs.{next(iter(inner))}" if isinstance(inner, dict) else next(iter(change))
    with pytest.raises(ArtifactError, match=rf"\(models\.weak\.{name}: .* there, .* now\)"):
        reused(settings(), settings(vllm(**change)))
    with pytest.raises(ArtifactError, match=rf"\(models\.weak\.{name}: .* there, .* now\)"):
        reused(settings(vllm(**change)), settings())


def test_pure_speed_settings_are_free_to_change() -> None:
    speed = {
        "max_num_batched_tokens": 8_192,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.8,
        "block_size": 32,
        "swap_space": 4,
    }
    parallel = vllm(tensor_parallel_size=4, max_num_seqs=7, accelerator_type="L4", replicas={"max": 3}, engine_kwargs=speed)
    assert reused(settings(), settings(parallel))
    assert reused(settings(parallel), settings())


def test_a_context_length_in_engine_kwargs_is_the_one_that_counts() -> None:
    inside = settings(vllm(max_model_len=4_096, engine_kwargs={"max_model_len": 2_048}))
    assert reused(inside, settings(vllm(max_model_len=2_048)))
    with pytest.raises(ArtifactError, match=r"models\.weak\.max_model_len: 2048 there, 4096 now"):
        reused(inside, settings(vllm(max_model_len=4_096)))


def test_speed_settings_are_arguments_that_vllm_has() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    text = (Path(found.origin).parent / "engine" / "arg_utils.py").read_text().partition("class EngineArgs")[2]
    assert SPEED_ONLY - {"swap_space"} <= set(re.findall(r"^    (\w+): ", text, re.MULTILINE))  # swap_space: of older ones


def test_a_model_served_elsewhere_is_its_server_its_name_and_its_api() -> None:
    def remote(**changes: Any) -> dict[str, Any]:
        raw = {"engine": "openai", "base_url": "http://x/v1", "model": "y", **changes}
        return settings(OpenAIModelConfig.model_validate(raw))

    assert reused(remote(), remote(max_concurrency=3, timeout_s=5, api_key_env="K", supports_n=False, replicas={"max": 2}))
    for change in ({"base_url": "http://z/v1"}, {"model": "z"}, {"api": "chat"}):
        with pytest.raises(ArtifactError, match=rf"models\.weak\.{next(iter(change))}"):
            reused(remote(), remote(**change))
    assert OpenAIModelConfig.model_fields.keys() >= NOT_CONTENT


def test_what_serving_alone_needs_changes_no_sample() -> None:
    served = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True, "reasoning_parser": "qwen3"}
    assert reused(settings(), settings(vllm(engine_kwargs=served)))
    assert server_arguments() >= SERVER_ONLY  # so the sampling engine is not given them
    with pytest.raises(ValueError, match="chat_template: set it beside engine_kwargs"):
        vllm(engine_kwargs={"chat_template": "{{ messages }}"})


# Older records -------------------------------------------------------------------------------------------------------


def raw_with_space(model: Any = None) -> dict[str, Any]:
    """As every model was asked then."""
    return sample_settings(model or vllm(), replace(spec(gsm8k=256), prompt=PromptFormat(keeps_space=True)))


def test_an_older_record_is_accepted_as_far_as_it_says() -> None:
    """Up to version 0.1.0 a record had no context length, and all of engine_kwargs."""
    kwargs = {"enforce_eager": True, "quantization": "fp8"}
    old = settings()
    old["model"] = {"path": "m", "dtype": "auto", "engine_kwargs": kwargs}
    assert reused(old, raw_with_space(vllm(engine_kwargs=kwargs)))
    assert reused(old, raw_with_space(vllm(max_model_len=2_048, engine_kwargs={"quantization": "fp8"})))
    with pytest.raises(ArtifactError, match=r"models\.weak\.engine_kwargs\.quantization: 'fp8' there, None now"):
        reused(old, raw_with_space())
    with pytest.raises(ArtifactError, match=r"models\.weak\.max_model_len"):
        reused(
            {**old, "model": {**old["model"], "engine_kwargs": {**kwargs, "max_model_len": 512}}},
            raw_with_space(vllm(engine_kwargs=kwargs)),
        )


def test_an_older_record_of_a_model_served_elsewhere_is_accepted() -> None:
    remote = OpenAIModelConfig(engine="openai", base_url="http://x/v1", model="y")
    old = {**raw_with_space(), "model": {"base_url": "http://x/v1", "model": "y", "api": "completions"}}
    assert reused(old, raw_with_space(remote))


def test_another_kind_of_engine_is_another_model() -> None:
    remote = OpenAIModelConfig(engine="openai", base_url="http://x/v1", model="y")
    with pytest.raises(ArtifactError, match=r"models\.weak\.path: 'm' there, None now"):
        reused(settings(), settings(remote))
    with pytest.raises(ArtifactError, match=r"models\.weak\.base_url"):
        reused(settings(remote), settings())
