"""How an ingress replica asks for what all of them know together. Runs on ingress replicas."""

import asyncio
import logging
from typing import Any, Literal

from ray.serve.handle import DeploymentHandle

from serve_app.calls import cancel

TELL_EVERY_S = 1.0  # each ingress replica, also when it has nothing new
# Methods of `shared.replica.SharedReplica`.
Question = Literal["recall", "claim", "enter", "leave", "tell", "take", "correct", "settle"]
# What is told again and again, and by which an ingress replica finds out that the shared one is back.
HEARTBEATS = ("tell", "settle")

logger = logging.getLogger("ray.serve")


class SharedState:
    """The shared replica. While it does not answer in time, each ingress replica goes by what it knows itself."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._is_up = True

    async def ask(self, question: Question, *arguments: Any) -> Any:
        """The method's answer; None where there is none in time. Raises nothing. In an outage only heartbeats wait for it."""
        if not self._is_up and question not in HEARTBEATS:
            return None
        call = getattr(self._handle, question).remote(*arguments)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await call
        except Exception as e:  # whatever befell it, the router and the models can still answer
            cancel(call)
            if self._is_up:  # once an outage, not once a request
                logger.warning(
                    "The replica that ingress replicas share gives no answer (%s): each goes by what it knows itself.",
                    type(e).__name__,
                )
            self._is_up = False
            return None
        if not self._is_up:
            logger.warning("The replica that ingress replicas share answers again.")
        self._is_up = True
        return answer
