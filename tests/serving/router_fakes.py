"""A router replica in process, without Ray: the real one, with predictors in place of the store's routers."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tiny_router import SCRATCH, make_card

from firewall_ray.config.router import RouterConfig, ScoringConfig
from firewall_ray.config.serving import BudgetControlConfig
from firewall_ray.errors import ModelError
from firewall_ray.policy import QuantileTable
from firewall_ray.router.card import RouterCard
from firewall_ray.router.predict import Scored
from firewall_ray.store.layout import ArtifactStore
from serve_app.routing.arms import LoadedRouter
from serve_app.routing.budget import BudgetController
from serve_app.routing.decision import Decision, DecisionRequest
from serve_app.routing.replica import Router

WINDOW = 200


@dataclass(eq=False)
class FakePredictor:
    """A prompt's score is the number in it, plus `offset`. The calibration sample has 0.00 to 0.99.

    s_a_text: how long each takes. held: while it is set, scores are not given out. num_calls, num_texts: asked for so far.
    """

    version: str
    offset: float = 0.0
    s_a_text: float = 0.0
    held: threading.Event | None = None
    num_calls: int = 0
    num_texts: int = 0

    @property
    def card(self) -> RouterCard:
        quantiles = QuantileTable.from_scores([self.offset + i / 100 for i in range(100)])
        template = f"{self.version}: {{question}}"
        update: dict[str, Any] = {"version": self.version, "quantiles": quantiles, "prompt_template": template}
        return make_card(RouterConfig(backbone=SCRATCH)).model_copy(update=update)

    def score(self, prompts: list[str]) -> Scored:
        if self.held is not None:
            self.held.wait()
        time.sleep(self.s_a_text * len(prompts))
        self.num_calls += 1
        self.num_texts += len(prompts)
        return Scored(np.array([float(prompt.split()[-1]) + self.offset for prompt in prompts]), np.zeros(len(prompts), bool))


@dataclass
class Metrics:
    values: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.values[name, "".join(tags.values())] = value


class Memory:
    """In place of the cluster's, which all replicas share."""

    def __init__(self) -> None:
        self.value: dict[str, Any] | None = None

    def get(self) -> dict[str, Any] | None:
        return self.value

    def put(self, value: dict[str, Any]) -> None:
        self.value = value


class Replica(Router):
    """With predictors in place of the store's routers."""

    def __init__(self, budget_control: BudgetControlConfig | None = None) -> None:
        card = make_card(RouterConfig(backbone=SCRATCH))
        super().__init__(ArtifactStore("nowhere"), ScoringConfig(), (card.weak, card.strong), 0, budget_control, "refuse")
        self.predictors = {"soft_block": FakePredictor("one"), "hard_block": FakePredictor("two", offset=10)}
        self.num_loaded = 0
        self._metrics = self.seen = Metrics()  # type: ignore[assignment]
        self._last_applied = self.memory = Memory()  # type: ignore[assignment]

    def _load(self, name: str, version: str | None) -> Any:
        if name not in self.predictors:
            raise ModelError(f"there is no {name}")
        found = self.predictors[name]
        if version not in (None, found.version):
            raise ModelError(f"version {found.version}, not {version}")
        self.num_loaded += 1
        return found

    async def decide(self, texts: list[str], target: float | None, are_questions: bool, counts: bool = False) -> list[Decision]:
        (decided,) = await self.decide_all([DecisionRequest(texts, target, are_questions, counts)])
        if isinstance(decided, Exception):
            raise decided
        return decided

    async def share_strong(self, scores: list[float], target: float | None = None) -> float:
        """Of as many requests, one after the other."""
        decisions = [(await self.decide([str(score)], target, True, True))[0] for score in scores]
        return float(np.mean([decision.route == "strong" for decision in decisions]))


def main_router(router: Router) -> LoadedRouter:
    assert router._arms is not None
    return router._arms.main.router


def budgets_of(router: Router) -> BudgetController:
    """Of the router that is no canary."""
    found = main_router(router).budgets
    assert found is not None
    return found


def user_config(router: str = "soft_block", strong_fraction: float = 0.5) -> dict[str, Any]:
    return {"router": router, "strong_fraction": strong_fraction}


async def replica(window: int | None = WINDOW, **config: Any) -> Replica:
    made = Replica(None if window is None else BudgetControlConfig(window=window))
    await made.reconfigure(user_config(**config))
    return made
