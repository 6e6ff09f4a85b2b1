"""The sections `router` and `scoring`: what is trained on the labels, and on what it scores."""

from typing import Literal

from pydantic import Field

from firewall_ray.config.base import ActorsConfig, BackboneConfig, LabelDesign, Positive, Strict


class RouterConfig(Strict):
    """Training of the router (paper Sec. 4.1 and Eq. 2)."""

    designs: list[LabelDesign] = Field(
        ["soft_block", "hard_block"], min_length=1, description="One router is trained for each label design."
    )
    backbone: BackboneConfig = BackboneConfig()
    # The defaults are for the paper's network and machine: DeBERTa-v3-large on 8 A100s (Sec. 4.1).
    epochs: Positive = Field(10, description="The paper's 10. The epoch with the lowest validation loss is kept.")
    batch_size: Positive = Field(64, description="Over all workers. Not in the paper; 8 a GPU on 8 GPUs.")
    learning_rate: float = Field(
        1e-5, gt=0, description="Not in the paper; DeBERTa-v3-large diverges above 2e-5, and its authors tune 5e-6 to 1e-5."
    )
    weight_decay: float = Field(0.01, ge=0, description="Not in the paper; the DeBERTa authors' value.")
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of the steps that warm up, then linear decay to 0.")
    max_length: Positive = Field(
        512, description="Tokens; longer prompts keep their first max_length. DeBERTa's pre-training length."
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="DeBERTa overflows in fp16, so that is not offered.")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO. 2 shards optimizer and gradients.")
    gradient_clipping: float = Field(1.0, gt=0)
    num_workers: Positive = Field(8, description="Data-parallel training workers, one GPU each unless device is cpu.")
    device: Literal["gpu", "cpu"] = "gpu"
    accelerator_type: str | None = Field(
        None,
        description="As Ray names it, such as A100, H100, L40S; A100-80G only where nodes were started with that name. None: any.",
    )
    max_failures: int = Field(3, ge=-1, description="Worker deaths survived by resuming from the last epoch. -1: no limit.")
    seed: int = 0


class ScoringConfig(ActorsConfig):
    """Scoring actors; the serving router has the same device, CPUs and batch size."""
