"""What decides a sample: settings under which rows that are there are the rows that a config asks for. Runs in the driver.

Recorded beside the samples, as `{"model": {...}, "sampling": {..., "stop": {task: [...]}, "max_tokens": {task: n}}}`. What is not
part of it may change from run to run: which queries there are, how many engines and GPUs, what only makes them faster.
Tasks add up: a record keeps each task's own settings for as long as its rows are there, whichever tasks the last run had.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from firewall_ray.config.models import ModelConfig, VllmModelConfig
from firewall_ray.engines.rows import SamplingSpec
from firewall_ray.errors import ArtifactError

BY_TASK = ("stop", "max_tokens")

# Of vLLM's EngineArgs those that change speed, memory, placement or what is logged, and not what a model is asked or may answer.
# Whatever else stands in `engine_kwargs` counts as content, also what a later vLLM adds: sampling anew costs less than rows of two
# kinds. Kernels differ in the last bits; those are not content, or a run could not change its GPUs.
SPEED_ONLY = frozenset(
    (
        *("enforce_eager", "optimization_level", "performance_mode", "compilation_config", "async_scheduling", "stream_interval"),
        *("cudagraph_capture_sizes", "max_cudagraph_capture_size", "attention_backend", "moe_backend", "linear_backend"),
        *("max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold", "watermark"),
        *(
            "enable_chunked_prefill",
            "enable_prefix_caching",
            "prefix_caching_hash_algo",
            "scheduling_policy",
            "disable_cascade_attn",
        ),
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "block_size", "num_gpu_blocks_override", "swap_space"),
        *("cpu_offload_gb", "cpu_offload_params", "offload_backend", "kv_offloading_size", "kv_offloading_backend"),
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "all2all_backend"),
        *("distributed_executor_backend", "disable_custom_all_reduce", "max_parallel_loading_workers", "numa_bind"),
        *("download_dir", "hf_token", "safetensors_load_strategy", "use_tqdm_on_load", "ignore_patterns"),
        *("disable_log_stats", "aggregate_engine_logging", "otlp_traces_endpoint", "collect_detailed_traces", "max_logprobs"),
        # Of serving alone: they read what the engine has said, or are defaults of requests that sampling makes itself.
        *("reasoning_parser", "generation_config"),
        *("kv_cache_metrics", "cudagraph_metrics", "enable_layerwise_nvtx_tracing", "enable_mfu_metrics", "profiler_config"),
    )
)

# Of vLLM's server, which the engine never sees.
SERVER_ONLY = frozenset(("tool_call_parser", "enable_auto_tool_choice"))

# Of a model served elsewhere: who pays, how fast, and on which node the actor waits.
NOT_CONTENT = frozenset(
    (
        *("engine", "api_key_env", "max_concurrency", "timeout_s", "max_attempts", "outage_s", "max_wait_s", "supports_n"),
        *("num_cpus", "replicas", "node_resource"),
        *("prompt", "system_prompt", "chat_template_kwargs", "keep_trailing_space"),  # resolved, as `prompt`: see `sample_settings`
    )
)


# How every model was asked before there was a choice, and nothing was recorded of it.
RAW_WITH_SPACE = {"format": "raw", "keep_trailing_space": True}


def sample_settings(model: ModelConfig, spec: SamplingSpec) -> dict[str, Any]:
    """What a run of this model with these settings records."""
    return {"model": {**_identity(model), "prompt": spec.prompt.identity()}, "sampling": _settings(spec)}


def merged(recorded: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What to record when rows are added to those that `recorded` is about (None: there are none): the tasks of both.

    >>> sampling = {"num_samples": 8, "stop": {"gsm8k": []}, "max_tokens": {"gsm8k": 256}}
    >>> wanted = {"num_samples": 8, "stop": {"triviaqa": []}, "max_tokens": {"triviaqa": 32}}
    >>> merged({"model": {}, "sampling": sampling}, {"model": {}, "sampling": wanted})["sampling"]["max_tokens"]
    {'gsm8k': 256, 'triviaqa': 32}
    """
    there = {} if recorded is None else recorded["sampling"]
    sampling = dict(wanted["sampling"])
    for field in BY_TASK:
        sampling[field] = {**there.get(field, {}), **sampling[field]}
    return {**wanted, "sampling": sampling}


def same_samples(key: str, path: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
    """A function of (recorded settings, wanted settings) for `Dataset.plan`: True where the recorded rows are what is wanted.

    key, path: of the model and its samples. The function raises ArtifactError naming each field and task that differs: the rows
    may have cost GPU-days, so they are neither reused nor made anew unasked.
    """

    def check(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        found = [*_model_changes(key, recorded["model"], wanted["model"]), *_sampling_changes(recorded, wanted)]
        if found:
            raise ArtifactError(
                f"samples: {path} was made with other settings ({'; '.join(found)}). Set them as they were to add to it, "
                "make all of it again with --force, or keep it and use another --root."
            )
        return True

    return check


def _settings(spec: SamplingSpec) -> dict[str, Any]:
    return {
        "num_samples": spec.num_samples,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "seed": spec.seed,
        "stop": {task: list(stop) for task, stop in spec.stop.items()},
        "max_tokens": dict(spec.max_tokens),
    }


def _identity(model: ModelConfig) -> dict[str, Any]:
    if isinstance(model, VllmModelConfig):
        # How it is asked stands beside it, see `sample_settings`.
        identity = {"path": model.path, "dtype": model.dtype, "max_model_len": model.max_model_len}
        return {**identity, "engine_kwargs": _content(model.engine_kwargs)}
    return model.model_dump(mode="json", exclude=set(NOT_CONTENT))


def _content(engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in engine_kwargs.items() if name not in SPEED_ONLY | SERVER_ONLY and value is not None}


def _model_changes(key: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    there, here = {"prompt": RAW_WITH_SPACE, **recorded}, dict(wanted)
    # vLLM gets `engine_kwargs` last, so what stands there is what counted, also of the fields that have a name of their own.
    arguments = [_content(each.pop("engine_kwargs", {})) for each in (there, here)]
    for name in sorted(arguments[0].keys() | arguments[1].keys()):
        if name not in here:
            yield from _change(f"models.{key}.engine_kwargs.{name}", arguments[0].get(name), arguments[1].get(name))
    for name in here:
        # An older record says nothing of fields that came later; what it does not say is taken to be the same.
        if name in there or name in arguments[0]:
            yield from _change(
                f"models.{key}.{name}", *(a.get(name, b.get(name)) for a, b in zip(arguments, (there, here), strict=True))
            )
    # Fields that the wanted kind of engine does not have: the rows are of another kind.
    for name in there.keys() - here.keys():
        yield from _change(f"models.{key}.{name}", there[name], None)


def _sampling_changes(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    there, here = recorded["sampling"], wanted["sampling"]
    for name in here:
        if name in BY_TASK:
            for task in sorted(there.get(name, {}).keys() & here[name].keys()):
                yield from _change(f"sampling.{name} of task {task}", there[name][task], here[name][task])
        elif name in there:
            yield from _change(f"sampling.{name}", there[name], here[name])


def _change(field: str, there: Any, here: Any) -> Iterator[str]:
    if there != here:
        yield f"{field}: {there!r} there, {here!r} now"
