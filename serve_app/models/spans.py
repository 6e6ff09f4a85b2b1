"""The span of an answer on the replica of the model that gives it, from its beginning there to its last token. Runs there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.models.answers import OPERATIONS, Endpoint, StreamPart, WholeAnswer, usage_attributes
from serve_app.tracing import Carrier, Step, Tracing

Told = Callable[[WholeAnswer | StreamPart], None]


class AnswerSpans:
    """tracing: None where it is off. model: its name in the run's config."""

    def __init__(self, tracing: Tracing | None, model: str) -> None:
        self._tracing = tracing
        self._model = model

    @contextmanager
    def answering(self, endpoint: Endpoint, trace: Carrier | None) -> Iterator[Told]:
        """Around one answer, and to be told what is sent of it. trace: of the request; None: nobody will see its spans."""
        if self._tracing is None or trace is None:
            yield _nobody
            return
        step = self._tracing.begin(f"{OPERATIONS[endpoint]} {self._model}", trace, "INTERNAL")
        step.set(
            {
                "gen_ai.operation.name": OPERATIONS[endpoint],
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": self._model,
            }
        )
        try:
            yield lambda sent: _tell(step, sent)
        except Exception as e:
            step.failed(type(e).__name__)
            raise
        finally:
            step.end()


def _nobody(sent: WholeAnswer | StreamPart) -> None:
    """Is told in place of a span."""


def _tell(step: Step, sent: WholeAnswer | StreamPart) -> None:
    if isinstance(sent, StreamPart):
        step.set({"gen_ai.response.time_to_first_chunk": sent.model_s})
    elif sent.status >= 400:
        step.failed(str(sent.status))
    if sent.usage is not None:
        step.set({**usage_attributes(sent.usage), "firewall.gpu_s": sent.usage.gpu_s or None})
