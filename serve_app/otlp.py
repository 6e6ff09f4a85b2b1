"""Where spans go: OpenTelemetry's standard variables, read as its specification says. Used in the driver and on replicas.

Without a collector among them tracing is off: no exporter is loaded and no span made.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from firewall_ray.errors import ConfigError
from serve_app.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PREFIX = "OTEL_"
# They usually hold a key, and Ray shows a replica's variables to whoever sees its dashboard.
SECRETS = "_HEADERS"
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
PROTOCOLS = ("http/protobuf", "grpc")  # the first is the specification's default


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether these variables name a collector, and do not turn tracing off."""
    if _said(environ, "OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporters = _said(environ, "OTEL_TRACES_EXPORTER")
    if exporters:
        return "otlp" in (each.strip() for each in exporters.split(","))
    return bool(_said(environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the driver's variables, those that its replicas get; none where tracing is off.

    Raises ConfigError for a protocol that there is not.
    """
    if not is_on(environ):
        return {}
    said = {name: value for name, value in environ.items() if name.startswith(PREFIX) and not name.endswith(SECRETS)}
    # Said in full: vLLM's processes send spans of their start by these variables too, and have another default.
    return {**said, PROTOCOL: _protocol(environ)}


def replica_tracing() -> Tracing | None:
    """Of the replica that this process is; None where tracing is off. To be closed when the replica stops."""
    if not is_on(os.environ):
        return None
    from ray import serve

    context = serve.get_replica_context()
    return tracing(context.deployment, context.replica_id.unique_id)


def tracing(deployment: str, replica: str) -> Tracing:
    """Spans to the collector that the variables name, sampled and collected as they say."""
    # Here: what is off loads none of it.
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.name": "firewall-ray", "service.instance.id": replica, "ray.serve.deployment": deployment}
    said = OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which win
    provider = TracerProvider(resource=Resource.create({**about, **said}))
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    return Tracing(provider)


def _exporter() -> "SpanExporter":
    if _protocol(os.environ) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp()


def _protocol(environ: Mapping[str, str]) -> str:
    said = _said(environ, PROTOCOL, "OTEL_EXPORTER_OTLP_PROTOCOL") or PROTOCOLS[0]
    if said not in PROTOCOLS:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {said} is none that spans can be sent by. There are: {', '.join(PROTOCOLS)}."
        )
    return said


def _said(environ: Mapping[str, str], *names: str) -> str:
    """The first of these variables that says anything. An empty one says nothing, as the specification has it."""
    return next((said for name in names if (said := environ.get(name, "").strip())), "")
