"""Memory of a Llama-like decoder, from its config.json: weights, and the KV cache of a token. Arithmetic alone.

Checked against the published counts: Llama-3.2-1B has 1,235,814,400 parameters, Llama-3.1-70B 70,553,706,496.
"""

from typing import Any

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.paper import ShapeConfig
from firewall_ray.engines.checkpoint import Checkpoint
from firewall_ray.errors import ConfigError

BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}  # auto: checkpoints of this kind are published in 16 bits


def shape_of(key: str, model: VllmModelConfig, given: ShapeConfig | None) -> ShapeConfig:
    """The shape that the config gives, else the one in the model's files.

    Raises ConfigError naming the field when neither is to be had.
    """
    if given is not None:
        return given
    try:
        config: Any = Checkpoint.of(model).config()
        return ShapeConfig(**{name: getattr(config, name) for name in ShapeConfig.model_fields})
    except Exception as e:  # no such folder, no network, no access, another kind of network
        raise ConfigError(
            f"paper.plan.shapes.{key}: the config.json of {model.path!r} cannot be read here ({type(e).__name__}), and no shape is "
            f"given. Copy its {', '.join(ShapeConfig.model_fields)} into paper.plan.shapes.{key}."
        ) from e


def num_parameters(shape: ShapeConfig) -> int:
    """Embeddings (twice where the head is not tied), attention with grouped keys and values, a gated MLP, RMS norms.

    >>> tiny = dict(hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    >>> num_parameters(ShapeConfig(**tiny, vocab_size=10))  # 2*40 + (2*16 + 2*8 + 3*32 + 2*4) + 4
    236
    """
    hidden = shape.hidden_size
    # A head has hidden / heads numbers, as in every Llama; models whose config.json has another `head_dim` come out wrong.
    keys_and_values = hidden * shape.num_key_value_heads // shape.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * keys_and_values
    # The last summand, here and of the whole: RMS norms, two a layer and one at the end, a number each a dimension.
    layer = attention + 3 * hidden * shape.intermediate_size + 2 * hidden
    embeddings = shape.vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
    return embeddings + shape.num_hidden_layers * layer + hidden


def kv_bytes_per_token(shape: ShapeConfig, dtype: str) -> int:
    """A key and a value in every layer for every key-value head.

    >>> tiny = dict(hidden_size=4, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    >>> kv_bytes_per_token(ShapeConfig(**tiny, vocab_size=10), "bfloat16")  # 2 * 3 layers * 1 head * 2 dimensions * 2 bytes
    24
    """
    head = shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * head * BYTES[dtype]


def memory(shape: ShapeConfig, model: VllmModelConfig, gpu_memory_gb: float) -> dict[str, float]:
    """Of one engine, in 10^9 bytes a GPU: `weights_gb`, `kv_gb` (room left for the cache); and `kv_tokens` over its GPUs.

    Activations and CUDA graphs are left out: they take a few GB of what gpu_memory_utilization leaves free.
    """
    # Tensor and pipeline parallelism both split the weights; that a pipeline's ends hold the embeddings is left out.
    num_gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    weights_gb = num_parameters(shape) * BYTES[model.dtype] / num_gpus / 1e9
    # What vLLM does at start: its share of the GPU, less the weights, becomes the cache.
    kv_gb = model.gpu_memory_utilization * gpu_memory_gb - weights_gb
    kv_tokens = kv_gb * 1e9 * num_gpus / kv_bytes_per_token(shape, model.dtype)
    return {"num_gpus": num_gpus, "weights_gb": weights_gb, "kv_gb": kv_gb, "kv_tokens": kv_tokens}
