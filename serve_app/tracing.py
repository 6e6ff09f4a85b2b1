"""The span of a request that is under way, and how it is passed on. In every process that a request passes through.

A step is passed on as W3C's headers: over HTTP, and over Serve's handle calls as an argument. Ray Serve has tracing of its own
(RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH), which is not it: it takes code in place of the standard variables, has to be set for the
whole cluster, makes several spans of each call that know nothing of routing, and loses a request where several share a call.

OpenTelemetry is loaded by whoever makes spans (otlp.py), not with this module. Where tracing is off, it costs a look at `CURRENT`.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

Carrier = dict[str, str]  # traceparent and tracestate
HEADERS = (b"traceparent", b"tracestate")
Kind = Literal["SERVER", "CLIENT", "INTERNAL"]  # OpenTelemetry's


class Step:
    """A span from its beginning to its end."""

    def __init__(self, tracing: "Tracing", span: "Span") -> None:
        self._tracing = tracing
        self._span = span

    @property
    def is_recorded(self) -> bool:
        """False where the sampler left the trace out: nobody will see what is said of it."""
        return self._span.is_recording()

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Names of attributes and their values; those that are None are left out."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def failed(self, why: str) -> None:
        """why: a status or the name of an exception's class; never its words, which may repeat a prompt."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", why)
        self._span.set_status(Status(StatusCode.ERROR))

    def headers(self) -> Carrier:
        """What makes a span elsewhere a child of this one."""
        return self._tracing.headers(self._span)

    def child(self, name: str, kind: Kind) -> "Step":
        return self._tracing.begin(name, self.headers(), kind)

    def end(self, at_ns: int | None = None) -> None:
        """at_ns: since 1970; None: now."""
        self._span.end(at_ns)


class Tracing:
    """Of one process."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("firewall-ray")
        # W3C's alone: baggage, which others may put into their requests, is not for bought models.
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: Mapping[str, str], kind: Kind, at_ns: int | None = None) -> Step:
        """A step within the one whose headers these are; of a trace of its own where there are none, or none that can be read."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        within = self._propagator.extract(parent, Context())
        return Step(self, self._tracer.start_span(name, within, SpanKind[kind], start_time=at_ns))

    def headers(self, span: "Span") -> Carrier:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        carrier: Carrier = {}
        self._propagator.inject(carrier, set_span_in_context(span, Context()))
        return carrier

    def close(self) -> None:
        """Send what is left. Blocks for as long as that takes, OTEL_EXPORTER_OTLP_TIMEOUT and little more at most."""
        self._provider.shutdown()


# The step that the request at hand is in.
CURRENT: ContextVar[Step | None] = ContextVar("step", default=None)


def headers() -> Carrier:
    """Of the current step; none where there is none."""
    step = CURRENT.get()
    return {} if step is None else step.headers()


def recorded_headers() -> Carrier | None:
    """As an argument of a call to another replica of ours, which has nothing to do where nobody will see its spans."""
    step = CURRENT.get()
    return step.headers() if step is not None and step.is_recorded else None
