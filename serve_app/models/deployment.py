"""A model of the run's config as a `ray.serve.llm` deployment. Runs in the driver that builds the application."""

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.llm import LLMConfig

from firewall_ray.config.models import VllmModelConfig, model_path
from firewall_ray.config.serving import ServingConfig
from firewall_ray.engines.placement import placement_strategy
from serve_app.serve_settings import replica_environment


def llm_config(
    key: str,
    model: VllmModelConfig,
    serving: ServingConfig,
    as_sampled: Mapping[str, Any] | None = None,
) -> LLMConfig:
    """What Ray Serve needs to serve `models.<key>`; the key is the id that clients know the model by.

    as_sampled: of `chats.as_sampled`, engine arguments by which it is asked as it was sampled.
    """
    bundle = {"CPU": model.num_cpus} if model.device == "cpu" else {"CPU": 1, "GPU": 1}
    bundle |= {**model.node_resources, **serving.node_resources}
    # A conversation keeps its replica, and with it the KV cache of what was said. Where there is one replica, or conversations
    # are not kept, Serve's own choice is the better one: it looks at the queues.
    sticky = serving.sticky and model.replicas.max > 1
    return LLMConfig(
        model_loading_config={"model_id": key, "model_source": model_path(model.path)},
        engine_kwargs=engine_kwargs(model, as_sampled or {}),
        accelerator_type=model.accelerator_type,
        placement_group_config={"bundle_per_worker": bundle, "strategy": placement_strategy(model)},
        deployment_config={
            # As many again may wait at the replica; beyond that the ingress holds a queue, and then it is overload. Serve counts
            # a request as queued until it has a replica, so the queue must hold what falls back in one moment when the other
            # model dies: all that its replica worked on.
            "max_ongoing_requests": 2 * model.max_num_seqs,
            "max_queued_requests": 2 * model.max_num_seqs,
            "autoscaling_config": {
                "min_replicas": model.replicas.min,
                "max_replicas": model.replicas.max,
                "target_ongoing_requests": model.max_num_seqs,
            },
            "graceful_shutdown_timeout_s": serving.longest_answer_s,
            "max_surge_percent": serving.max_surge_percent,
            **({"request_router_config": RequestRouterConfig(request_router_class=ConsistentHashRouter)} if sticky else {}),
        },
        runtime_env={"env_vars": {**replica_environment(), **environment(model)}},
    )


def engine_kwargs(model: VllmModelConfig, as_sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says, in vLLM's words. The config's own `engine_kwargs` is last and wins."""
    kwargs: dict[str, Any] = {
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": model.max_num_seqs,
        "tensor_parallel_size": model.tensor_parallel_size,
        "pipeline_parallel_size": model.pipeline_parallel_size,
    }
    if model.device == "gpu":
        kwargs["gpu_memory_utilization"] = model.gpu_memory_utilization
    return {**kwargs, **as_sampled, **model.engine_kwargs}


def environment(model: VllmModelConfig) -> dict[str, str]:
    """Variables of the engine's process."""
    if model.device == "gpu":
        return {}
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(model.kv_cache_gib)),
        # Pinning would put both engines onto the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(model.num_cpus))),
    }
