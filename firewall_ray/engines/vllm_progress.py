"""What a vLLM engine is doing, seen from outside: its start from its log, its work from what each step gives back.

Runs on the sampling actors. Our requests tell nothing before they are finished (`RequestOutputKind.FINAL_ONLY`), and vLLM's own
statistics come with Prometheus' counters at every step; this counts tokens where they leave the engine's core, and asks for the
rest about once a second.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from firewall_ray.engines.report import EngineReport

# What vLLM 0.29 logs, in the engine's process, when it begins something that takes long. With several GPUs its workers are other
# processes, and it stays at the first.
PHASES = (
    (re.compile(r"Starting to load model"), "loading the model"),
    (re.compile(r"(Loading weights|Model loading) took"), "measuring its memory"),
    (re.compile(r"torch\.compile|[Cc]ompil(e|ing) a graph|Dynamo bytecode"), "compiling"),
    (re.compile(r"Warming up model|[Cc]apturing|warmup"), "warming up"),
)


class EngineMeter:
    """Used by the thread that steps the engine. sequences_of_row: that a query takes, its n samples and the greedy answer."""

    def __init__(self, engine: Any, sequences_of_row: int, report: EngineReport) -> None:
        self._sequences_of_row = sequences_of_row
        self._report = report
        self._unfinished = engine.output_processor.request_states  # by id, one a sequence
        self._num_added = self._num_finished = self._num_tokens = 0
        self._count_tokens(engine.engine_core)

    def added(self, num_sequences: int) -> None:
        """A request that the engine took."""
        if self._num_added == 0:
            self._report.state("first batch")
        self._num_added += num_sequences

    def stepped(self) -> None:
        """After each step; does nothing unless a second has passed."""
        if self._report.is_due:
            self.tell()

    def tell(self) -> None:
        num_finished = self._num_added - len(self._unfinished)
        num_waiting = sum(state.is_prefilling for state in self._unfinished.values())
        self._report.levels({"running": len(self._unfinished) - num_waiting, "waiting": num_waiting})
        # In rows: the sequences that ended since the last word, as parts of a row's n + 1.
        num_new = num_finished - self._num_finished
        amounts = {"work": num_new / self._sequences_of_row, "requests": num_new, "tokens": self._num_tokens}
        self._report.add(amounts, at_once=True)
        self._num_finished, self._num_tokens = num_finished, 0

    def _count_tokens(self, core: Any) -> None:
        get_output = core.get_output

        def counted() -> Any:
            outputs = get_output()
            self._num_tokens += sum(len(output.new_token_ids) for output in outputs.outputs)
            return outputs

        core.get_output = counted  # of this one engine, and what `LLMEngine.step` calls


@contextmanager
def phases_told(report: EngineReport) -> Iterator[None]:
    """While the body starts an engine, vLLM's log lines become the actor's state; what it prints stays as it was."""
    vllm_logger = logging.getLogger("vllm")
    handler = _PhaseHandler(report)
    handlers = [(each, each.level) for each in vllm_logger.handlers]
    level = vllm_logger.level
    for each, _ in handlers:
        # The logger lets INFO through while the body runs, and its own handlers would print it.
        each.setLevel(max(each.level, level))
    vllm_logger.addHandler(handler)
    vllm_logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        vllm_logger.removeHandler(handler)
        vllm_logger.setLevel(level)
        for each, before in handlers:
            each.setLevel(before)


class _PhaseHandler(logging.Handler):
    def __init__(self, report: EngineReport) -> None:
        super().__init__(logging.INFO)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for pattern, phase in PHASES:
            if pattern.search(message):
                self._report.state(phase)
