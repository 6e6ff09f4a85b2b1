"""What all ingress replicas know together: which model a conversation began with, and how much of each key is in flight.

A deployment of one replica, with everything in memory: a call is a dictionary's work. When it dies, conversations go on where the
ingress replicas remember them, and the places in flight are known again as soon as each ingress replica has told its own.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping

from ray import serve
from ray.serve.deployment import Application

from firewall_ray.config.serving import ServingConfig
from serve_app.routing.conversations import Conversations
from serve_app.routing.decision import Decision

TELL_EVERY_S = 5.0
FORGOTTEN_AFTER_S = 4 * TELL_EVERY_S  # an ingress replica that told nothing for so long is gone, and its places with it
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
    """The deployment. Its methods are what `shared.client.Question` names."""

    def __init__(self) -> None:
        self._conversations = Conversations()
        self._places = Places()

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


def shared_deployment(serving: ServingConfig) -> Application | None:
    """None where there is nothing to share: one ingress replica alone, or neither keys nor conversations to count or keep."""
    if serving.ingress_replicas.max == 1 or not (serving.sticky or isinstance(serving.api_keys, list)):
        return None
    deployment = serve.deployment(
        SharedReplica,
        name="Shared",
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0, "resources": serving.node_resources},  # microseconds a call: it needs no core of its own
    )
    return deployment.bind()
