"""How much of the time of a replica's GPUs each of its answers took. Runs on model replicas.

An engine works on many answers at a time. While n are under way, each of them has an n-th of the GPUs: so the parts of all answers
add up to the time in which the replica was not idle.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class GpuTime:
    """num_gpus: of one replica. clock: seconds."""

    def __init__(self, num_gpus: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._num_gpus = num_gpus
        self._clock = clock
        self._num_answers = 0
        self._at_s = clock()
        # What an answer that is under way from the first to now would have had: the integral of num_gpus / num_answers.
        self._each_s = 0.0

    @contextmanager
    def answering(self) -> Iterator[Callable[[], float]]:
        """One answer, until the block ends. Gives what says the seconds of GPUs that it has had so far."""
        self._advance()
        self._num_answers += 1
        began_s = self._each_s

        def had_s() -> float:
            self._advance()
            return self._each_s - began_s

        try:
            yield had_s
        finally:
            self._advance()
            self._num_answers -= 1

    def _advance(self) -> None:
        now = self._clock()
        if self._num_answers:
            self._each_s += (now - self._at_s) * self._num_gpus / self._num_answers
        self._at_s = now
