"""The DeepSpeed engine: AdamW, linear warm-up and decay, ZeRO and precision from the config.

Runs on every training worker, inside the process group that Ray Train has set up.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from firewall_ray.config.router import RouterConfig

if TYPE_CHECKING:  # imported where it is used: it writes to stdout on import, and the driver does not need it
    import deepspeed

_ZERO_PARTITIONED_WEIGHTS = 3


def deepspeed_config(router: RouterConfig) -> dict[str, Any]:
    """`router.batch_size` is over all workers, without gradient accumulation."""
    return {
        "train_batch_size": router.batch_size,
        "train_micro_batch_size_per_gpu": router.batch_size // router.num_workers,  # exact: `train.for_workers` saw to it
        "gradient_clipping": router.gradient_clipping,
        # Where it is off, DeepSpeed computes in the model's own precision, float32.
        "bf16": {"enabled": router.precision == "bf16"},
        "zero_optimization": {"stage": router.zero_stage},
    }


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Factor on the learning rate of step 0, 1, ..., num_steps - 1: up to 1 over the warm-up, then down towards 0.

    >>> [learning_rate_scale(step, 5, 0.4) for step in range(6)]
    [0.5, 1.0, 1.0, 0.6666666666666666, 0.3333333333333333, 0.0]
    """
    num_warmup = round(num_steps * warmup_share)
    if step < num_warmup:
        return (step + 1) / num_warmup  # not step / num_warmup: the first step would move nothing
    # The scheduler asks for the step after the last as well, step = num_steps, which gets 0.
    return max(0, num_steps - step) / max(1, num_steps - num_warmup)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay pulls matrices towards 0; biases and norms, the vectors, are left alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_engine(model: PreTrainedModel, router: RouterConfig, num_steps: int, first_step: int = 0) -> "deepspeed.DeepSpeedEngine":
    """Wrap the model for data-parallel training over `num_steps` optimizer steps, the first `first_step` of them done before."""
    import deepspeed

    # At info it writes its whole configuration.
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # This op only serves tensor-parallel inference on CPUs; left on, importing it compiles C++ for up to two minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # torch's own AdamW, already built: DeepSpeed's fused ones are compiled on first use.
    optimizer = torch.optim.AdamW(parameter_groups(model, router.weight_decay), lr=router.learning_rate)

    def scale(step: int) -> float:  # of the steps that this engine takes
        return learning_rate_scale(first_step + step, num_steps, router.warmup_share)

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda basic: LambdaLR(basic, scale),
        config=deepspeed_config(router),
        # Ray Train has set the process group up.
        dist_init_required=False,
    )
    return engine


def save_weights(
    engine: "deepspeed.DeepSpeedEngine", tokenizer: PreTrainedTokenizerBase, zero_stage: int, folder: Path | None
) -> None:
    """A Hugging Face folder of the engine's weights. Called on every worker, since ZeRO 3 gathers them; written where
    `folder` is given (rank 0)."""
    import deepspeed

    parameters = list(engine.module.parameters())
    # Under ZeRO 3 a worker's own parameters are empty outside this; other stages keep them whole on every worker.
    with deepspeed.zero.GatheredParameters(parameters, enabled=zero_stage == _ZERO_PARTITIONED_WEIGHTS):
        if folder is not None:
            engine.module.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
