"""Whether a model's deployment has a replica left, so that nobody waits for one that is dead. Runs on ingress replicas.

To Serve a deployment without replicas is one that will have some soon: a request waits for them, which is right while a model
scales up and wrong when its only replica died and takes minutes to load, or when there is no GPU for it any more.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray.serve.handle import DeploymentHandle

PERIOD_S = 1.0
ANSWER_S = 5.0  # a replica that is slow to say that it is well is not dead: a request's own deadline judges that


class ModelWatch:
    """handle: of the model's deployment. Looks only while a request waits or the model is dead, and at most once a second."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.is_dead = False
        self._handle = handle
        self._waiting: set[asyncio.Timeout] = set()
        self._task: asyncio.Task[None] | None = None

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
        """While a request waits for its first byte: its deadline is over at once when the model is found dead."""
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
                self.is_dead = await self._finds_it_dead()
            if self.is_dead:
                for deadline in self._waiting:
                    with suppress(RuntimeError):  # it was over already
                        deadline.reschedule(0)

    async def _finds_it_dead(self) -> bool:
        try:
            await self.check()
        except TimeoutError:
            return False
        except Exception:
            return True
        return False
