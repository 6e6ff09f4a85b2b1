"""Scores the texts of many requests a slice at a time, so that none of them keeps the others waiting. Runs on router replicas.

A slice takes some hundredths of a second. It is filled with a text of each request in turn: a request of one text is scored in the
slice after it came, whoever else is there with a thousand. Between two slices it is seen who has left.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from firewall_ray.router.predict import RouterPredictor, Scored
from serve_app.routing.pace import Pace, cost

SLICE_S = 0.025  # what a small request waits for at most, beside its own slice: well below a deadline of half a second


class Job:
    """The texts of one request. scored: its result, or the failure of a slice with one of them."""

    def __init__(self, predictor: RouterPredictor, prompts: Sequence[str]) -> None:
        self.predictor = predictor
        self.prompts = prompts
        self.scored: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._p_weak: list[np.float32] = [np.float32(0)] * len(prompts)
        self._truncated = [False] * len(prompts)
        self._num_taken = 0
        self._num_missing = len(prompts)
        self._end()

    def take(self) -> int | None:
        """The number of the next text to score; None when all were taken, or nobody waits for them any more."""
        if self.scored.done() or self._num_taken == len(self.prompts):
            return None
        self._num_taken += 1
        return self._num_taken - 1

    def put(self, number: int, p_weak: np.float32, truncated: bool) -> None:
        self._p_weak[number], self._truncated[number] = p_weak, truncated
        self._num_missing -= 1
        self._end()

    def _end(self) -> None:
        if self._num_missing == 0 and not self.scored.done():
            self.scored.set_result(Scored(np.array(self._p_weak), np.array(self._truncated)))


class Slices:
    """A replica's scoring: one slice after the other, in a thread beside the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._pace = Pace()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def scoring(self, requests: Sequence[tuple[RouterPredictor, Sequence[str]]]) -> Iterator[list[asyncio.Future[Scored]]]:
        """Of each request's prompts, by its router: scores to await. What is not there at the end of the block is given up."""
        jobs = [Job(predictor, prompts) for predictor, prompts in requests]
        self._waiting.extend(jobs)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield [job.scored for job in jobs]
        finally:
            for job in jobs:
                job.scored.cancel()

    async def _run(self) -> None:
        while taken := self._next():
            began = time.perf_counter()
            # Two predictors while a router is swapped or a canary runs, else one.
            for predictor in {job.predictor for job, _ in taken}:
                mine = [(job, number) for job, number in taken if job.predictor is predictor]
                try:
                    together = await asyncio.to_thread(predictor.score, [job.prompts[number] for job, number in mine])
                except Exception as e:
                    for job, _ in mine:
                        if not job.scored.done():
                            job.scored.set_exception(e)
                    continue
                for (job, number), p_weak, truncated in zip(mine, together.p_weak, together.truncated, strict=True):
                    job.put(number, p_weak, truncated)
            self._pace.measured(sum(cost(job.prompts[number]) for job, number in taken), time.perf_counter() - began)

    def _next(self) -> list[tuple[Job, int]]:
        """The next slice: at least one text, as long as there is any."""
        room = self._pace.within(SLICE_S)
        taken: list[tuple[Job, int]] = []
        while self._waiting and (room > 0 or not taken):
            job = self._waiting.popleft()
            number = job.take()
            if number is None:
                continue
            taken.append((job, number))
            room -= cost(job.prompts[number])
            self._waiting.append(job)
        return taken
