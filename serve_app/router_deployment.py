"""The router as a deployment: texts in, decisions out. Runs on router replicas, apart from the ingress' event loop.

The score comes from the predictor that the offline jobs use, and it meets its threshold in `firewall_ray.policy`, as offline.
"""

import asyncio
import tempfile
from typing import Any

from ray import serve
from ray.serve.deployment import Application

from firewall_ray.artifacts import ArtifactStore
from firewall_ray.config import ScoringConfig
from firewall_ray.policy import goes_strong
from firewall_ray.router.predict import RouterPredictor, local_copy
from serve_app.decision import Decision

MAX_ONGOING_REQUESTS = 1_000


class Router:
    """A replica of the router. Loads `routers/<name>/` of the store and scores once, so that the first request is not slow."""

    def __init__(self, store: ArtifactStore, name: str, scoring: ScoringConfig, tie_seed: int) -> None:
        on_gpu = scoring.device == "gpu"
        with tempfile.TemporaryDirectory() as cache:
            self._predictor = RouterPredictor(
                local_copy(store.router(name), cache),
                batch_size=scoring.batch_size,
                device="cuda" if on_gpu else "cpu",
                num_threads=None if on_gpu else max(1, int(scoring.num_cpus)),
            )
        self._card = self._predictor.card
        self._tie_seed = tie_seed
        self._score.set_max_batch_size(scoring.batch_size)
        self._predictor.predict(["warm up"])

    async def decide(self, texts: list[str], strong_fraction: float, are_questions: bool) -> list[Decision]:
        """One decision a text. strong_fraction: in [0, 1]. are_questions: put them into the card's prompt template first, as
        for training; otherwise they are whole prompts. The prompt's hash breaks ties, so it takes the same way as offline.
        """
        prompts = [self._card.prompt_template.format(question=text) for text in texts] if are_questions else texts
        threshold = self._card.quantiles.threshold(strong_fraction)
        scored = await asyncio.gather(*(self._score(prompt) for prompt in prompts))
        strong = goes_strong([p_weak for p_weak, _ in scored], prompts, threshold, self._tie_seed)
        return [
            Decision("strong" if is_strong else "weak", "score", p_weak, threshold.value, self._card.version, truncated)
            for is_strong, (p_weak, truncated) in zip(strong, scored, strict=True)
        ]

    # Waits for nobody: a batch is what came in while the one before it was scored.
    @serve.batch(batch_wait_timeout_s=0)
    async def _score(self, prompts: list[str]) -> list[tuple[float, bool]]:
        """(p_weak, truncated) of each prompt. In a thread, so that this replica's event loop goes on collecting."""
        p_weak, truncated = await asyncio.to_thread(self._predictor.score, prompts)
        return list(zip(p_weak.tolist(), truncated.tolist(), strict=True))


def router_deployment(store: ArtifactStore, name: str, scoring: ScoringConfig, tie_seed: int) -> Application:
    """The router `name` of the store, on the device and CPUs that scoring has."""
    resources: dict[str, Any] = {"num_cpus": scoring.num_cpus, "num_gpus": 1 if scoring.device == "gpu" else 0}
    deployment = serve.deployment(Router, name="Router", max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options=resources)
    return deployment.bind(store, name, scoring, tie_seed)
