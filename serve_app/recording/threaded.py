"""An observer told a moment later, in a thread of its own. Runs on ingress replicas.

Ray's metrics let go of Python's interpreter lock at every value. That costs 2 microseconds of work, but on a busy replica other
threads wait for the lock, and to get it back took some 2 ms of a request's time in the event loop (docs/serving.md). In a thread it
is nobody's time.
"""

import logging
import threading
from collections import deque

from serve_app.recording.exchange import Exchange, Observer

PERIOD_S = 0.25  # Ray exports metrics every few seconds

logger = logging.getLogger("ray.serve")


class ThreadedObserver:
    """Passes every exchange on to `observer`, in order. `record` may be called from any thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._exchanges: deque[Exchange] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"record-{type(observer).__name__}", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """As the protocol says."""
        self._exchanges.append(exchange)

    def close(self) -> None:
        """Tell what is left. Blocks for as long as that takes."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        while self._exchanges:
            try:
                self._observer.record(self._exchanges.popleft())
            except Exception as e:  # as the gateway does: the others' records are worth more
                logger.error("%s failed to record a request (%s).", type(self._observer).__name__, type(e).__name__)
