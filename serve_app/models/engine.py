"""What a model's replica knows of its engine: what it may be asked, whether it died and of what, whether it hangs. Runs on model
replicas, beside vLLM's client of the engine's process.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from vllm.exceptions import VLLMValidationError

from serve_app.models.answers import EngineCrashed, EngineDead

PERIOD_S = 1.0
# Of an engine that somebody else ended: an operator, the kernel when memory is short, a node that is taken away.
KILLED = frozenset({-signal.SIGKILL, -signal.SIGTERM})

logger = logging.getLogger("ray.serve")


class EngineGuard:
    """client: vLLM's `AsyncLLM`. stall_s: an engine that says nothing to anybody for so long, while somebody waits, hangs.

    Made in the event loop that the engine is asked from.
    """

    def __init__(self, client: Any, stall_s: float) -> None:
        self._client = client
        self._stall_s = stall_s
        self._heard_at = time.monotonic()
        self._hangs = False
        self._told = False
        self._waiting: dict[asyncio.Timeout, float] = {}
        self._task: asyncio.Task[None] | None = None
        # Methods of these two objects: vLLM has no hook for what goes in and what comes out.
        _before(client.output_processor, "process_outputs", self._hear)
        _after(client.input_processor, "process_inputs", self._check_ids)

    def require(self) -> None:
        """Raises EngineDead where a request would wait in vain. It can't be why."""
        if self._client.errored or self._hangs:
            self._tell()
            raise EngineDead

    def blame(self) -> None:
        """To be asked when a request failed that was in the engine: raises EngineDead or EngineCrashed where that is why."""
        if self._client.errored:
            self._tell()
            raise EngineDead if self._was_killed() else EngineCrashed

    def check_health(self) -> None:
        """Raises EngineDead of an engine that hangs, so that Serve replaces the replica."""
        if self._hangs:
            raise EngineDead

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """While a request waits for its first token or for its whole answer. Raises EngineDead when the engine hangs."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(None) as deadline:
                self._waiting[deadline] = time.monotonic()
                try:
                    yield
                finally:
                    del self._waiting[deadline]
        except TimeoutError as e:
            if not deadline.expired():
                raise
            raise EngineDead from e

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if self._waiting and time.monotonic() - max(self._heard_at, min(self._waiting.values())) > self._stall_s:
                self._hangs = True
                self._tell()
                for deadline in self._waiting:
                    with suppress(RuntimeError):  # it was over already
                        deadline.reschedule(0)

    def _hear(self) -> None:
        self._heard_at = time.monotonic()
        if self._hangs:
            self._hangs = self._told = False
            logger.warning("The engine of this replica speaks again.")

    def _tell(self) -> None:
        """Once, in this replica's log."""
        if not self._told:
            self._told = True
            what = f"has said nothing for {self._stall_s:g} s: it hangs" if self._hangs else "died"
            logger.error("The engine of this replica %s. Serve will replace it.", what)

    def _was_killed(self) -> bool:
        """By somebody else, as far as can be known: of a worker's death the engine's process dies by itself."""
        manager = self._client.engine_core.resources.engine_manager
        codes = [process.exitcode for process in getattr(manager, "processes", ())]
        return any(code in KILLED for code in codes)

    def _check_ids(self, request: Any) -> None:
        """vLLM takes one id more than some models have, which are those of a text too when the tokenizer has more of them than
        the model. The engine dies of it: with everybody's requests.
        """
        size = self._client.model_config.get_vocab_size()
        params = request.sampling_params
        ids = {"bad_words": [token for word in (params and params.bad_words_token_ids) or () for token in word]}
        if not request.mm_features:  # where images stand, some models have ids beyond their vocabulary, and replace them
            ids["prompt"] = request.prompt_token_ids or []
        for field, its in ids.items():
            if its and max(its) >= size:
                raise VLLMValidationError(f"Token id {max(its)} is out of vocabulary ({size:,} tokens)", parameter=field)


def _before(owner: Any, method: str, hook: Callable[[], None]) -> None:
    original = getattr(owner, method)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        hook()
        return original(*args, **kwargs)

    setattr(owner, method, hooked)


def _after(owner: Any, method: str, hook: Callable[[Any], None]) -> None:
    original = getattr(owner, method)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        hook(result)
        return result

    setattr(owner, method, hooked)
