"""Whether a model's deployment has a replica left, so that nobody waits for one that is dead. Runs on ingress replicas.

To Serve a deployment without replicas is one that will have some soon: a request waits for them, which is right while a model
scales up and wrong when its only replica died and takes minutes to load, or when there is no GPU for it any more.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray.serve.handle import DeploymentHandle

from serve_app.models.outage import Outage

PERIOD_S = 1.0
ANSWER_S = 5.0  # a replica that is slow to say that it is well is not dead yet
GRACE_S = 0.5  # a request's own failure may be on its way, and knows whether the engine crashed under it
START_S = 60.0  # that a replica takes to be there again, until one was seen to


class ModelWatch:
    """Looks only while a request waits or the model is dead, and at most once a second.

    key: the model's name in the run's config, for the log. handle: of its deployment. stall_s: replicas that have not said for
    so long that they are well are dead, though their processes live.
    """

    def __init__(self, key: str, handle: DeploymentHandle, stall_s: float) -> None:
        self._outage = Outage(key, expected_s=START_S)
        self._handle = handle
        self._stall_s = stall_s
        self._silent_since: float | None = None
        self._waiting: set[asyncio.Timeout] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_dead(self) -> bool:
        """As it was found the last time."""
        return self._outage.is_on

    @property
    def expected_s(self) -> float:
        """Seconds until a dead model will probably be back."""
        return self._outage.remaining_s

    async def check(self) -> None:
        """Raises whatever is wrong when no replica is well, and TimeoutError when one takes too long to say."""
        # Not a request of its own, which would wait behind the others and for a replica to come.
        call = self._handle.broadcast("check_health")
        results = await call.results_async(timeout_s=ANSWER_S, return_exceptions=True)
        problems = [result for result in results if isinstance(result, BaseException)]
        if len(problems) == len(results):
            raise problems[0]

    @contextmanager
    def waiting(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """While a request waits for its first byte: its deadline is over soon when the model is found dead."""
        if self._task is None:  # not in __init__, which has no event loop yet
            self._task = asyncio.create_task(self._watch())
        self._waiting.add(deadline)
        try:
            yield
        finally:
            self._waiting.discard(deadline)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if self._waiting or self.is_dead:
                await self._look()
            if self.is_dead:
                soon = asyncio.get_running_loop().time() + GRACE_S
                for deadline in self._waiting:
                    when = deadline.when()
                    if when is None or when > soon:
                        with suppress(RuntimeError):  # it was over already
                            deadline.reschedule(soon)

    async def _look(self) -> None:
        try:
            await self.check()
        except TimeoutError:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since > self._stall_s:
                self._outage.begin(f"no replica has said for {self._stall_s:g} s that it is well")
        except Exception as e:
            self._silent_since = None
            self._outage.begin(f"no replica is well ({type(e).__name__})")
        else:
            self._silent_since = None
            self._outage.end()
