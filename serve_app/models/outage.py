"""An outage of one model as an ingress replica sees it: said in the log when it begins and ends, and how long it will last."""

import logging
import time
from collections.abc import Callable

# Nobody plans by a longer one, and who comes back earlier finds out.
MAX_RETRY_AFTER_S = 300.0

logger = logging.getLogger("ray.serve")


class Outage:
    """key: the model's name in the run's config. expected_s: how long the first one will probably last. clock: seconds."""

    def __init__(self, key: str, expected_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._expected_s = expected_s
        self._clock = clock
        self._since: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is one."""
        return self._since is not None

    @property
    def remaining_s(self) -> float:
        """Seconds that it will probably last from now: as long as the one before, and when that is over, as long again."""
        elapsed = 0.0 if self._since is None else self._clock() - self._since
        remaining = self._expected_s - elapsed if elapsed < self._expected_s else elapsed
        return min(max(1.0, remaining), MAX_RETRY_AFTER_S)

    def begin(self, why: str) -> None:
        """Does nothing while there is one."""
        if self._since is None:
            self._since = self._clock()
            logger.warning("models.%s is out: %s.", self._key, why)

    def end(self) -> None:
        """Does nothing when there is none."""
        if self._since is not None:
            self._expected_s = self._clock() - self._since
            self._since = None
            logger.warning("models.%s answers again, after %.0f s.", self._key, self._expected_s)
