"""The parts of training that need no process group: schedule, weight decay, loss, bookkeeping of the best epoch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firewall_ray.config import RouterConfig
from firewall_ray.errors import ConfigError
from firewall_ray.router.engine import deepspeed_config, learning_rate_scale, parameter_groups
from firewall_ray.router.loop import Progress
from firewall_ray.router.train import for_workers
from firewall_ray.router.validation import bce, sigmoid

FLOATS = st.floats(-30, 30)


def test_the_learning_rate_warms_up_and_ends_at_0() -> None:
    # 10 steps, a fifth of them warm-up: 1/2, 1, then (10 - step) / 8.
    scales = [learning_rate_scale(step, 10, 0.2) for step in range(11)]
    assert scales == [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0]


@given(st.integers(1, 200), st.floats(0, 0.99))
def test_the_learning_rate_is_never_negative_and_moves_every_step(num_steps: int, warmup_share: float) -> None:
    scales = [learning_rate_scale(step, num_steps, warmup_share) for step in range(num_steps)]
    assert all(0 < scale <= 1 for scale in scales)
    assert max(scales) == 1.0


def test_biases_and_norms_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, spared = parameter_groups(model, weight_decay=0.1)
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert [p.shape for p in spared["params"]] == [(2,), (2,), (2,)]  # the bias, and the norm's weight and bias
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@given(hnp.arrays(float, 5, elements=FLOATS), hnp.arrays(float, 5, elements=st.floats(0, 1)))
def test_bce_agrees_with_torch(logits: np.ndarray, labels: np.ndarray) -> None:
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels)).item()
    assert bce(logits, labels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_soft_bce_is_lowest_where_the_probability_is_the_label() -> None:
    label = np.array([0.25])
    best = bce(np.log(label / (1 - label)), label)
    # Its value there is the label's entropy: -(1/4 ln 1/4 + 3/4 ln 3/4) = 0.5623.
    assert best == pytest.approx(0.5623, abs=1e-4)
    assert all(bce(np.array([logit]), label) >= best for logit in (-3.0, -1.0, 0.0, 2.0))


def test_sigmoid_stands_extreme_logits() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_the_best_epoch_is_the_first_with_the_lowest_loss() -> None:
    progress = Progress("soft_block", [{"validation_bce": loss} for loss in (0.5, 0.3, math.nan, 0.3)])
    assert progress.best_epoch == 2
    assert Progress("soft_block", [{"validation_bce": math.nan}]).best_epoch == 1
    assert Progress("soft_block").best_epoch == 0


def test_a_batch_that_the_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.batch_size is 50 .* such as 52"):
        for_workers(RouterConfig(batch_size=50, num_workers=4))


def test_deepspeed_gets_the_whole_batch_and_each_workers_part() -> None:
    config = deepspeed_config(RouterConfig(batch_size=64, num_workers=8, zero_stage=3, precision="bf16"))
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 8)
    assert config["zero_optimization"]["stage"] == 3
    assert config["bf16"]["enabled"]
