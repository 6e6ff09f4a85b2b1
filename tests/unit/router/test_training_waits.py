"""A training says what it waits for as long as its workers are not placed."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from firewall_ray.config.router import RouterConfig
from firewall_ray.router import waits
from firewall_ray.stages.needs import training_need

ROUTER = RouterConfig(num_workers=2, accelerator_type="A100")
WORKER = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001}


def test_it_is_waited_for_its_own_workers_again_when_their_node_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: dict[str, Any] = {"another job's": {"state": "CREATED", "bundles": {0: WORKER, 1: WORKER}}}
    waiting: list[bool] = []

    @contextmanager
    def said_while_waiting(need: Any, begun: Callable[[], bool]) -> Any:
        assert need == training_need(ROUTER)
        waiting.append(True)
        yield
        waiting.append(False)

    def becomes(length: int) -> None:
        deadline = time.monotonic() + 10
        while len(waiting) < length and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(waiting) == length

    monkeypatch.setattr(waits, "placement_group_table", lambda: dict(groups))
    monkeypatch.setattr(waits, "said_while_waiting", said_while_waiting)
    monkeypatch.setattr(waits, "LOOK_EVERY_S", 0.01)
    with waits.waits_said(training_need(ROUTER)):
        groups["ours"] = {"state": "PENDING", "bundles": {0: WORKER, 1: WORKER}}
        time.sleep(0.1)
        assert waiting == [True]
        groups["ours"] = {**groups["ours"], "state": "CREATED"}
        becomes(2)
        groups["ours"] = {**groups["ours"], "state": "RESCHEDULING"}
        becomes(3)
        assert waiting == [True, False, True]


def test_ray_train_asks_for_what_the_words_say() -> None:
    """The parts are what the group of workers is known by, so they must be what Ray Train makes of the settings."""
    from ray.train import ScalingConfig

    scaling = ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1}, accelerator_type="A100")
    assert [scaling._resources_per_worker_not_none] * 2 == training_need(ROUTER).parts
