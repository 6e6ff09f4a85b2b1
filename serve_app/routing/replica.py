"""The router as a deployment: texts in, decisions out. Runs on router replicas, apart from the ingress' event loop.

The score comes from the predictor that the offline jobs use, and it meets its threshold in `firewall_ray.policy`, as offline.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ray import serve
from ray.serve.deployment import Application

from firewall_ray.config.router import ScoringConfig
from firewall_ray.config.run import RunConfig
from firewall_ray.config.serving import BudgetControlConfig
from firewall_ray.errors import ModelError
from firewall_ray.policy import goes_strong
from firewall_ray.router.card import RouterCard
from firewall_ray.router.pair import ModelOfPair, check_models
from firewall_ray.router.predict import RouterPredictor, Scored, local_copy
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.tasks.base import prompt_id
from serve_app.crossing import only_plain_errors
from serve_app.logs import warnings_at_once
from serve_app.metrics import RayMetrics
from serve_app.otlp import replica_tracing
from serve_app.routing.arms import Arms, Deciding, LoadedRouter, RouterUserConfig
from serve_app.routing.budget import BudgetController
from serve_app.routing.decision import Arm, Decision, DecisionRequest, Spent
from serve_app.routing.last_applied import LastApplied
from serve_app.routing.slices import Slices
from serve_app.routing.spans import trace_scoring
from serve_app.serve_settings import replica_environment
from serve_app.tracing import Tracing

# Calls, never reached: an ingress has one more under way than there are replicas. Serve's own 5 would hold them back.
MAX_ONGOING_REQUESTS = 1_000

logger = logging.getLogger("ray.serve")


class Router:
    """A replica of the router of `pair`, the weak and the strong model that are served.

    other_models: what becomes of a router that was trained for others, see `ServingConfig`.

    Under `budget_control` each replica holds the fraction of its own decisions; so n of them together hold it over n windows.
    """

    _tracing: Tracing | None = None  # for `__del__`, whatever becomes of `__init__`

    def __init__(
        self,
        store: ArtifactStore,
        scoring: ScoringConfig,
        pair: tuple[ModelOfPair, ModelOfPair],
        tie_seed: int,
        budget_control: BudgetControlConfig | None,
        other_models: Literal["refuse", "warn"],
    ) -> None:
        self._tracing = replica_tracing()
        warnings_at_once()
        self._store = store
        self._scoring = scoring
        self._pair = pair
        self._other_models = other_models
        self._tie_seed = tie_seed
        self._budget_control = budget_control
        self._last_applied = LastApplied(store.root)
        self._slices = Slices()
        self._metrics = RayMetrics()
        self._standing: dict[str, float] = {}
        self._arms: Arms | None = None  # None: nothing is loaded yet
        self._loaded: dict[tuple[str, str | None], LoadedRouter] = {}  # those of the arms, by name and version as asked for

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at the start and on every change. Requests are answered by the router before, until the new one is
        loaded and warm. What cannot be applied is left out: the router before stays, since Serve would answer an exception by
        stopping it; the reason is in the log, and the metric `firewall_router_config_refused` is 1 until the next good change.

        A replica that starts then begins with what the others have. Raises only where no router can be loaded at all.
        """
        try:
            await self._apply(RouterUserConfig.model_validate(user_config))
        except Exception as e:
            if self._arms is None:
                await self._begin_otherwise(user_config, e)
            assert self._arms is not None
            self._stand("firewall_router_config_refused", 1)
            version = self._arms.main.router.predictor.card.version
            logger.error("The user_config of Router is not applied; version %s stays. %s", version, e)
        else:
            self._stand("firewall_router_config_refused", 0)

    async def _apply(self, wanted: RouterUserConfig, *, lasting: bool = True) -> None:
        # All of it is loaded before any of it decides.
        name = (wanted.router, wanted.version)
        loaded = {name: await self._router(name, wanted.strong_fraction)}
        main, canary = Deciding(loaded[name], wanted.strong_fraction, "main"), None
        if wanted.canary is not None:
            fraction = wanted.strong_fraction if wanted.canary.strong_fraction is None else wanted.canary.strong_fraction
            if wanted.canary.router is not None:
                name = (wanted.canary.router, wanted.canary.version)
                loaded[name] = loaded.get(name) or await self._router(name, fraction)
            canary = Deciding(loaded[name], fraction, "canary")
        if self._arms is None or main.router is not self._arms.main.router:
            self._stand("firewall_score_drift", 0)
        self._arms, self._loaded = Arms(main, canary, wanted.canary.share if wanted.canary else 0.0), loaded
        if main.router.budgets is not None:
            main.router.budgets.default = wanted.strong_fraction
        if lasting:
            await asyncio.to_thread(self._last_applied.put, wanted.model_dump())

    async def _router(self, name: tuple[str, str | None], strong_fraction: float) -> LoadedRouter:
        """The one that decides already, in either arm, else a new one."""
        if name in self._loaded:
            return self._loaded[name]
        return LoadedRouter(await asyncio.to_thread(self._load, *name), self._budget_control, strong_fraction)

    async def _begin_otherwise(self, refused: dict[str, Any], why: Exception) -> None:
        """At the start, where `refused` cannot be applied. Raises `why` where nothing else can."""
        last = await asyncio.to_thread(self._last_applied.get)
        # What the other replicas run. Where a router was trained anew under its name, the version that they hold is nowhere else:
        # then the one that there is, which decides by its own thresholds.
        candidates = [last, {**refused, "version": None}, None if last is None else {**last, "version": None}]
        for candidate in candidates:
            try:
                await self._apply(RouterUserConfig.model_validate(candidate), lasting=False)
            except Exception as e:
                logger.error("Neither can %s be applied. %s", candidate, e)
            else:
                return
        raise why  # nothing ran before: Serve shall say that it could not deploy this one

    def _load(self, name: str, version: str | None) -> RouterPredictor:
        with tempfile.TemporaryDirectory() as cache:
            predictor = RouterPredictor(
                local_copy(self._store.router(name).require(), cache),
                batch_size=self._scoring.batch_size,
                device=self._scoring.torch_device,
                num_threads=self._scoring.torch_threads,
                compiled=self._scoring.device == "cpu",
            )
        card = predictor.card
        keys = tuple(model.key for model in self._pair)
        if (card.weak.key, card.strong.key) != keys:
            raise ModelError(f"The router {name} was trained for {card.weak.key} and {card.strong.key}, not {keys}.")
        check_models(name, (card.weak, card.strong), self._pair, refuse=self._other_models == "refuse")
        if version not in (None, card.version):
            raise ModelError(f"The router {name} has version {card.version}, not {version}.")
        predictor.predict(["warm up"])  # so that the first request is not slow
        return predictor

    async def decide_all(self, requests: list[DecisionRequest], spent: Sequence[Spent] = ()) -> list[list[Decision] | Exception]:
        """For each request one decision a text, in order; or why there is none, which is no other request's fault. spent: what
        became of earlier ones.

        A text that is a question is put into the card's prompt template first, as for training. The prompt's hash breaks ties,
        so it takes the same way as offline.
        """
        began_ns = time.time_ns()
        # Of the same routers to the end, whatever is loaded meanwhile.
        arms = self._arms
        assert arms is not None
        for each in spent:
            deciding = arms.named(each.arm)
            if deciding.router.budgets is not None:
                target, is_strong = deciding.target(each.strong_fraction), each.answered == "strong"
                deciding.router.budgets.settle(target, is_strong=is_strong, is_counted=each.decided is not None)
        asked = [(request, arms.of(request)) for request in requests]
        prompts = [_prompts(request, deciding.router.predictor.card) for request, deciding in asked]
        jobs = [(deciding.router.predictor, its_prompts) for (_, deciding), its_prompts in zip(asked, prompts, strict=True)]
        with only_plain_errors(), self._slices.scoring(jobs) as scores:
            all_scored = await asyncio.gather(*scores, return_exceptions=True)
        # Nothing is awaited from here on: a threshold must know of every decision before it.
        decided: list[list[Decision] | Exception] = []
        for (request, deciding), its_prompts, scored in zip(asked, prompts, all_scored, strict=True):
            try:
                with only_plain_errors():
                    if isinstance(scored, BaseException):
                        raise scored
                    decided.append(self._decide(request, its_prompts, scored, deciding))
            except Exception as e:  # plain by now
                decided.append(e)
                continue
            if request.counts:
                self._watch(deciding, scored.p_weak)
        if self._tracing is not None:
            trace_scoring(self._tracing, requests, decided, began_ns, time.time_ns())
        return decided

    async def may_stand_in(self, strong_fraction: float | None, is_counted: bool, arm: Arm) -> bool:
        """Whether the strong model may answer for the weak one at this fraction, see `BudgetController.may_stand_in`."""
        assert self._arms is not None
        deciding = self._arms.named(arm)
        if deciding.router.budgets is None:
            return True
        return deciding.router.budgets.may_stand_in(deciding.target(strong_fraction), is_counted=is_counted)

    def _decide(self, request: DecisionRequest, prompts: list[str], scored: Scored, deciding: Deciding) -> list[Decision]:
        card, budgets = deciding.router.predictor.card, deciding.router.budgets
        target = deciding.target(request.strong_fraction)
        threshold = card.quantiles.threshold(target) if budgets is None else budgets.threshold(target)
        strong = goes_strong(scored.p_weak, prompts, threshold, self._tie_seed)
        if budgets is not None and request.counts:
            budgets.record(target, float(scored.p_weak.min()), bool(strong.any()))
            if deciding.arm == "main":
                self._report(budgets)
        return [
            Decision(
                route="strong" if is_strong else "weak",
                reason="score",
                score=p_weak,
                threshold=threshold.value,
                router=card.version,
                truncated=truncated,
                strong_fraction=target,
                query_id=prompt_id(prompt),
                arm=deciding.arm,
            )
            for prompt, is_strong, p_weak, truncated in zip(
                prompts, strong.tolist(), scored.p_weak.tolist(), scored.truncated.tolist(), strict=True
            )
        ]

    def _report(self, budgets: BudgetController) -> None:
        """How the default target is kept."""
        budget = budgets.budget(budgets.default)
        self._metrics("firewall_budget", budget.target, {"fraction": "target"})
        self._metrics("firewall_budget", budgets.threshold(budget.target).strong_fraction, {"fraction": "effective"})
        if budget.realised is not None:
            self._metrics("firewall_budget", budget.realised, {"fraction": "realised"})

    def _watch(self, deciding: Deciding, p_weak: np.ndarray) -> None:
        """Whether live scores are still like those of the calibration. Those of a router that was replaced say nothing."""
        for score in p_weak.tolist():
            index = deciding.router.drift.add(score)
            if index is not None and self._arms is not None and deciding.router is self._arms.main.router:
                self._stand("firewall_score_drift", index)

    def _stand(self, gauge: str, value: float) -> None:
        """A gauge that keeps its value until it is set again."""
        self._standing[gauge] = value
        self._metrics(gauge, value, {})

    def check_health(self) -> None:
        """Serve calls it every ten seconds. Ray forgets gauges that nobody set for twenty, so what stands is said again."""
        for gauge, value in self._standing.items():
            self._metrics(gauge, value, {})

    def __del__(self) -> None:  # which Serve calls, and waits for, when it stops a replica
        if self._tracing is not None:
            self._tracing.close()


def _prompts(request: DecisionRequest, card: RouterCard) -> list[str]:
    """What the router of the card reads of a request."""
    if not request.are_questions:
        return request.texts
    return [card.prompt_template.format(question=text) for text in request.texts]


def router_deployment(config: RunConfig, store: ArtifactStore, name: str, pair: tuple[ModelOfPair, ModelOfPair]) -> Application:
    """The router `name` of the store, on the device and CPUs that scoring has. pair: the weak and the strong model, as served."""
    scoring, serving = config.scoring, config.serving
    replicas = serving.router_replicas
    resources: dict[str, Any] = {
        "num_cpus": scoring.num_cpus,
        "num_gpus": 1 if scoring.device == "gpu" else 0,
        "resources": serving.node_resources,
        "runtime_env": {"env_vars": replica_environment()},
    }
    deployment = serve.deployment(
        Router,
        name="Router",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options=resources,
        logging_config={"enable_access_log": False},  # the ingress has one
        autoscaling_config={
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            # An ingress asks in one call for all that came in during the one before: calls say how busy a replica is.
            "target_ongoing_requests": 1,
        },
        graceful_shutdown_timeout_s=serving.answer_timeout_s,  # the longest that an ingress waits for a batch
        # A GPU more than it has may be nowhere.
        max_surge_percent=100 if scoring.device == "cpu" else serving.max_surge_percent,
        user_config=RouterUserConfig(router=name, strong_fraction=serving.strong_fraction).model_dump(),
    )
    return deployment.bind(store, scoring, pair, config.evaluation.seed, serving.budget_control, serving.other_models)
