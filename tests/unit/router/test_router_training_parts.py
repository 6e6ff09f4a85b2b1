"""The parts of training that need no process group: schedule, weight decay, loss, bookkeeping of the best epoch."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firewall_ray.config.router import RouterConfig
from firewall_ray.errors import ConfigError
from firewall_ray.router.engine import deepspeed_config, learning_rate_scale, parameter_groups
from firewall_ray.router.loop import Progress
from firewall_ray.router.telemetry import RowsDone
from firewall_ray.router.validation import bce, sigmoid
from firewall_ray.stages.train_router import NOT_THE_RESULT, for_workers, same_result

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


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("num_workers", 4, True),  # refused on 4 GPUs what had begun on 8
        ("zero_stage", 0, True),
        ("device", "cpu", True),
        ("accelerator_type", "A100", True),
        ("max_failures", 9, True),
        ("batch_size", 32, False),
        ("precision", "fp32", False),
        ("epochs", 3, False),
        ("seed", 1, False),
    ],
)
def test_training_goes_on_on_other_hardware_and_with_no_other_recipe(field: str, value: object, same: bool) -> None:
    def settings(router: RouterConfig) -> dict[str, object]:
        return {"design": "soft_block", "router": router.model_dump(mode="json", exclude=NOT_THE_RESULT), "limit": None}

    router = RouterConfig()
    assert same_result(settings(router), settings(router.model_copy(update={field: value}))) == same
    # As recorded by a version that had the hardware among the settings.
    older = {"design": "soft_block", "router": router.model_dump(mode="json", exclude={"designs", "max_failures"}), "limit": None}
    assert same_result(older, settings(router))


class Counter:
    """What a `ProgressCounter`'s handle is to a worker."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, int]]] = []
        self.add = self

    def remote(self, key: str, amounts: dict[str, int]) -> None:
        self.told.append((key, amounts))


def test_progress_moves_within_an_epoch_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("firewall_ray.router.telemetry.time.monotonic", lambda: now)
    counter = Counter()
    rows = RowsDone(counter, "soft_block")
    for step in range(25):  # 10 steps a second of 16 rows
        now = step / 10
        rows.add(16)
    # At 1.0 s the steps 0 to 10 are told, at 2.0 s the next ten; the last four wait for the end of the epoch.
    assert [amounts["rows"] for _, amounts in counter.told] == [11 * 16, 10 * 16]
    rows.flush()
    assert sum(amounts["rows"] for _, amounts in counter.told) == 25 * 16
    rows.flush()
    assert len(counter.told) == 3


def test_the_loss_is_said_within_an_epoch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    monkeypatch.setattr("firewall_ray.router.telemetry.time.monotonic", lambda: now)
    monkeypatch.setattr("firewall_ray.router.telemetry.logger", logging.getLogger("told"))
    rows = RowsDone(Counter(), "soft_block")
    with caplog.at_level("INFO", logger="told"):
        for step in range(1, 7):  # a step in 10 s, of 100 rows
            now = 10.0 * step
            rows.say(3, loss=1.0 / step, num_rows=100 * step, num_rows_of_epoch=1_000, num_samples_per_s=10.0)
    # (1 + 1/2 + 1/3) / 3 = 0.6111, then (1/4 + 1/5 + 1/6) / 3 = 0.2056. 700 rows at 10 a second are 70 s, 400 are 40.
    first, second = (record.message for record in caplog.records)
    assert "epoch 3, 300 of 1,000 training rows, loss 0.6111 over the last 3 steps, 10.0 samples/s, 70 s left" in first
    assert "loss 0.2056" in second
    assert "40 s left" in second


def test_deepspeed_gets_the_whole_batch_and_each_workers_part() -> None:
    config = deepspeed_config(RouterConfig(batch_size=64, num_workers=8, zero_stage=3, precision="bf16"))
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 8)
    assert config["zero_optimization"]["stage"] == 3
    assert config["bf16"]["enabled"]
