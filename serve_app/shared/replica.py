"""What all ingress replicas know together: the model a conversation began with, what each key has in flight and used this minute,
and what was spent.

A deployment of one replica, with everything in memory: a call is a dictionary's work. When it dies, conversations go on where the
ingress replicas remember them, the places in flight are known again as soon as each ingress replica has told its own, and a minute
begins anew. What was spent is kept under ROOT (`serve_app/money/keeper.py`).
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from ray import serve
from ray.serve.deployment import Application

from firewall_ray.config.serving import ServingConfig
from firewall_ray.store.dataset import Dataset
from serve_app.metrics import RayMetrics
from serve_app.money.keeper import LedgerKeeper
from serve_app.money.ledger import Spent
from serve_app.routing.conversations import Conversations
from serve_app.routing.decision import Decision
from serve_app.shared.client import TELL_EVERY_S
from serve_app.shared.minutes import KeyMinutes, Limits, Taken

FORGOTTEN_AFTER_S = 20 * TELL_EVERY_S  # an ingress replica that told nothing for so long is gone, and its places with it
MAX_ONGOING = 10_000


class Places:
    """Requests in flight by key, over all ingress replicas. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: dict[str, Counter[str]] = {}  # by ingress replica
        self._heard_s: dict[str, float] = {}

    def enter(self, ingress: str, key: str, limit: int) -> bool:
        """Whether there was a place for one more; then it is taken."""
        self._hear(ingress)
        if sum(taken[key] for taken in self._taken.values()) >= limit:
            return False
        self._taken[ingress][key] += 1
        return True

    def leave(self, ingress: str, key: str) -> None:
        """Gives a place back."""
        self._hear(ingress)
        self._taken[ingress][key] = max(0, self._taken[ingress][key] - 1)  # below, where its entering was not heard of

    def tell(self, ingress: str, taken: Mapping[str, int]) -> None:
        """What an ingress replica counts itself, which is what holds. Forgets the replicas that tell nothing any more."""
        self._hear(ingress)
        self._taken[ingress] = Counter(taken)
        for other, heard_s in list(self._heard_s.items()):
            if self._clock() - heard_s > FORGOTTEN_AFTER_S:
                del self._heard_s[other], self._taken[other]

    def _hear(self, ingress: str) -> None:
        self._heard_s[ingress] = self._clock()
        self._taken.setdefault(ingress, Counter())


class SharedReplica:
    """The deployment. Its methods are what `shared.client.Question` names. spending: where it is kept; None without caps."""

    def __init__(self, spending: Dataset | None = None) -> None:
        self._conversations = Conversations()
        self._places = Places()
        self._minutes = KeyMinutes()
        self._spending = None if spending is None else LedgerKeeper(spending, RayMetrics())

    async def recall(self, key: bytes) -> Decision | None:
        """As `Conversations.recall`."""
        return self._conversations.recall(key)

    async def claim(self, key: bytes, decision: Decision) -> Decision:
        """As `Conversations.claim`."""
        return self._conversations.claim(key, decision)

    async def enter(self, ingress: str, key: str, limit: int) -> bool:
        """As `Places.enter`."""
        return self._places.enter(ingress, key, limit)

    async def leave(self, ingress: str, key: str) -> None:
        """As `Places.leave`."""
        self._places.leave(ingress, key)

    async def tell(self, ingress: str, taken: Mapping[str, int]) -> None:
        """As `Places.tell`."""
        self._places.tell(ingress, taken)

    async def take(self, key: str, limits: Limits, tokens: int) -> Taken:
        """As `KeyMinutes.take`."""
        return self._minutes.take(key, limits, tokens)

    async def correct(self, key: str, limit: int, began_s: float, more: int) -> None:
        """As `KeyMinutes.correct`."""
        self._minutes.correct(key, limit, began_s, more)

    async def settle(self, ingress: str, totals: Mapping[str, Mapping[str, float]], keys: Collection[str] | None) -> Spent:
        """As `LedgerKeeper.settle`."""
        assert self._spending is not None
        return await self._spending.settle(ingress, totals, keys)

    def __del__(self) -> None:  # which Serve calls, and waits for, when it stops a replica
        if self._spending is not None:
            self._spending.close()


def shared_deployment(serving: ServingConfig, spending: Dataset) -> Application | None:
    """None where there is nothing to share: no spend caps, and one ingress replica alone, or neither keys nor conversations to
    count or keep. spending: where what was spent is kept.
    """
    is_alone = serving.ingress_replicas.max == 1 or not (serving.sticky or isinstance(serving.api_keys, list))
    if is_alone and serving.spend_caps is None:
        return None
    deployment = serve.deployment(
        SharedReplica,
        name="Shared",
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0, "resources": serving.node_resources},  # microseconds a call: it needs no core of its own
    )
    return deployment.bind(None if serving.spend_caps is None else spending)
