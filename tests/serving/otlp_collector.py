"""A small real OpenTelemetry collector in a thread: what is sent to it, over HTTP or gRPC, as plain spans."""

import gzip
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serve_app import otlp
from serve_app.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Sent:
    """One span. Ids in hex; parent: empty for a trace's first. times: in nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool
    times: tuple[int, int]


@dataclass
class Collector:
    """raw: every request's bytes, for what must be in none of them."""

    url: str = ""
    spans: list[Sent] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def take(self, request: ExportTraceServiceRequest) -> None:
        self.raw.append(request.SerializeToString())
        for resource in request.resource_spans:
            about = _plain(resource.resource.attributes)
            self.spans += [_sent(span, about) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> Sent:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def children(self, parent: Sent) -> dict[str, Sent]:
        """By name."""
        return {span.name: span for span in self.spans if span.parent == parent.span_id}


def _sent(span: Span, resource: dict[str, Any]) -> Sent:
    return Sent(
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _plain(span.attributes),
        resource,
        span.status.code == Status.STATUS_CODE_ERROR,
        (span.start_time_unix_nano, span.end_time_unix_nano),
    )


def _plain(attributes: Iterable[Any]) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def over_http() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.paths.append(self.path)
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    yield collector
    server.shutdown()
    server.server_close()


@contextmanager
def over_grpc() -> Iterator[Collector]:
    collector = Collector()

    class Service(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
            collector.take(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Service(), server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None)


def collected(ask: Callable[[Tracing], Any]) -> Any:
    """What `ask` answered, once all spans of it have been sent to the collector that the variables name."""
    with closing(otlp.tracing("Ingress", "ingress-1")) as tracing:
        return ask(tracing)
