"""The memory of conversations that all ingress replicas share: a deployment of one replica, and how the ingress asks it.

Without it each ingress replica would decide a conversation that another one began anew, by a threshold that has moved since, or by
another router. Asked once a conversation and ingress replica, when that one has not seen the conversation yet; later turns are
known there. Whoever claims a conversation first has decided it, so turns that come to several replicas at once agree too.

It is held in memory. When its replica dies, conversations go on where the ingress replicas remember them, and are decided anew
elsewhere.
"""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from firewall_ray.config.serving import ServingConfig
from serve_app.routing.conversations import Conversation, Conversations
from serve_app.routing.decision import Decision

MAX_ONGOING = 10_000  # a call is a dictionary's work, so no queue is worth its own limit

logger = logging.getLogger("ray.serve")


class SharedConversations:
    """[its own process] `Conversations`, over Serve."""

    def __init__(self) -> None:
        self._memory = Conversations()

    async def recall(self, key: bytes) -> Decision | None:
        """As `Conversations.recall`."""
        return self._memory.recall(key)

    async def claim(self, key: bytes, decision: Decision) -> Decision:
        """As `Conversations.claim`."""
        return self._memory.claim(key, decision)


class ConversationsClient:
    """[ingress process] Asks the shared memory. One that does not answer in time is one that knows nothing: the request goes on."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._is_up = True

    async def recall(self, key: bytes) -> Decision | None:
        """What any ingress replica has decided; None where none has."""
        found: Decision | None = await self._ask(self._handle.recall, key)
        return found

    async def claim(self, key: bytes, decision: Decision) -> Decision:
        """What holds for the conversation now: `decision`, or what another replica has decided before."""
        return await self._ask(self._handle.claim, key, decision) or decision

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        call = method.remote(*arguments)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await call
        except Exception as e:  # whatever befell it, the router and the models can still answer
            call.cancel()
            if self._is_up:  # once an outage, not once a request
                logger.warning(
                    "The shared memory of conversations gives no answer (%s); replicas go by their own.", type(e).__name__
                )
            self._is_up = False
            return None
        if not self._is_up:
            logger.warning("The shared memory of conversations answers again.")
        self._is_up = True
        return found


class KnownConversations:
    """[ingress process] This replica's memory, and behind it the shared one. shared: None where there is but one replica."""

    def __init__(self, shared: ConversationsClient | None) -> None:
        self._own = Conversations()
        self._shared = shared

    async def recall(self, conversation: Conversation) -> Decision | None:
        """What was decided when the conversation began; None where that is not known."""
        known = self._own.recall(conversation.key)
        if known is None and conversation.may_be_known and self._shared is not None:
            known = await self._shared.recall(conversation.key)
            if known is not None:
                self._own.remember(conversation.key, known)
        return known

    async def decided(self, conversation: Conversation, decision: Decision) -> Decision:
        """What holds from now on: the decision, or the one that another replica has made of the same conversation meanwhile."""
        if decision.reason != "score" or self._shared is None:
            self._own.remember(conversation.key, decision)
            return decision
        first = await self._shared.claim(conversation.key, decision)
        self._own.remember(conversation.key, first)
        return decision if first == decision else first.sticky()


def conversations_deployment(serving: ServingConfig) -> Application | None:
    """None where there is nothing to share: conversations are not kept, or by one ingress replica alone."""
    if not serving.sticky or serving.ingress_replicas.max == 1:
        return None
    deployment = serve.deployment(
        SharedConversations,
        name="SharedConversations",
        num_replicas=1,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0, "resources": serving.node_resources},  # microseconds a call: it needs no core of its own
    )
    return deployment.bind()
