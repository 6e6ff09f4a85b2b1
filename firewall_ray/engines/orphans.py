"""An engine's own process ends with the actor that started it, however that ended: by the OOM killer, `kill -9`, a crash.

With several GPUs vLLM runs its core in a child of the actor, which notices nothing when the actor is killed: it would keep its Ray
workers, and these the GPUs and the placement group, for as long as the node is up.

Runs on the actors, and in those children. Not the kernel's parent-death signal: it is sent when the *thread* that started the child
ends, and Ray ends threads of actors that live on.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

POLL_S = 1.0

_original: Callable[..., None] | None = None


def core_ends_with_actor() -> None:
    """From now on every engine core that vLLM starts as a child of this process watches over it."""
    from vllm.v1.engine.core import EngineCoreProc

    global _original
    if _original is None:
        _original = EngineCoreProc.run_engine_core
        # vLLM has no hook in that process before the weights are loaded. What it starts is looked up here, and pickled by its name.
        EngineCoreProc.run_engine_core = staticmethod(run_engine_core)


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """In place of vLLM's function of that name, in the child."""
    end_with_parent()
    from vllm.v1.engine.core import EngineCoreProc

    # A spawned child has vLLM as it comes; a forked one has what its parent put there, which is this function.
    (_original or EngineCoreProc.run_engine_core)(*args, **kwargs)


def end_with_parent() -> None:
    """Kill this process within a second or two of its parent's end. Call it first thing in the child."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:  # an orphan is given another
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
