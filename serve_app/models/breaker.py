"""A provider that fails again and again is left alone for a while: nobody waits for it, and it can recover. On ingress replicas."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.models.answers import ModelUnavailable
from serve_app.models.outage import Outage

NUM_FAILURES = 5  # in a row
FIRST_REST_S = 5.0
MAX_REST_S = 60.0


class Breaker:
    """key: the model's name in the run's config. clock: seconds."""

    def __init__(self, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._outage = Outage(key, FIRST_REST_S, clock)
        self._clock = clock
        self._num_failures = 0
        self._rest_s = FIRST_REST_S
        self._open_until = 0.0
        self._is_tried = False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Around a request, whose ModelUnavailable tells how the provider is. Raises ModelUnavailable at once while it rests.

        After the rest one request tries; only when that was answered do others follow.
        """
        tries = self._outage.is_on
        if tries:
            left_s = self._open_until - self._clock()
            if left_s > 0 or self._is_tried:
                raise ModelUnavailable("dead", max(1.0, left_s))
            self._is_tried = True
        try:
            yield
        except ModelUnavailable as e:
            if e.why == "overloaded":  # it is there, and says that it has no room
                self._succeeded()
            else:
                self._failed(e, tries)
            raise
        else:
            self._succeeded()
        finally:
            if tries:
                self._is_tried = False

    def _succeeded(self) -> None:
        self._num_failures = 0
        self._rest_s = FIRST_REST_S
        self._outage.end()

    def _failed(self, error: ModelUnavailable, tried: bool) -> None:
        self._num_failures += 1
        if self._num_failures < NUM_FAILURES or (self._outage.is_on and not tried):  # of those that were asked before it rested
            return
        if tried:
            self._rest_s = min(2 * self._rest_s, MAX_REST_S)
        self._outage.begin(f"{self._num_failures} requests in a row failed ({error.why})")
        self._open_until = self._clock() + self._rest_s
        error.retry_after_s = self._rest_s
