"""OpenTelemetry tracing: OTLP where an endpoint is set, else JSON lines in a local folder.

Standard ``OTEL_*`` variables are honoured (``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER=none``,
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_RESOURCE_ATTRIBUTES``, ...). Spans carry
identifiers, sizes and times, never prompts, keys or credentials.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from janus_runtime._spans import QuietSpanProcessor
from janus_runtime.logs import setup_logging
from janus_runtime.settings import ServiceSettings
from janus_runtime.spanstore import LocalSpanStore, list_traces, read_trace

__all__ = [
    "LocalSpanStore",
    "extract_context",
    "inject_context",
    "list_traces",
    "read_trace",
    "record_span",
    "setup_telemetry",
    "shutdown_telemetry",
    "tracer",
]

log = logging.getLogger("janus.telemetry")
_propagator = TraceContextTextMapPropagator()


class _PresetIds(RandomIdGenerator):
    """Random ids, except for a span whose id went over the wire before the span was recorded."""

    def __init__(self) -> None:
        self._preset = threading.local()

    def preset(self, span_id: int) -> None:
        """The next id this thread asks for; 0: a random one."""
        self._preset.id = span_id

    def generate_span_id(self) -> int:
        preset = getattr(self._preset, "id", 0)
        self._preset.id = 0
        return preset or super().generate_span_id()


class _Provider:
    """The process's tracer provider: one per process, as OpenTelemetry has it."""

    current: TracerProvider | None = None
    ids = _PresetIds()


def setup_telemetry(role: str, worker_id: str, settings: ServiceSettings) -> None:
    """Set up logging and tracing for this process. A second call in one process changes nothing."""
    setup_logging(settings.log_level)
    if _Provider.current is not None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    exporter = _exporter(worker_id, settings)
    if exporter is None:
        return
    # The environment's sampler, where one is named, is the SDK's to read.
    sampler: Sampler | None = None
    if not os.environ.get("OTEL_TRACES_SAMPLER"):
        sampler = ParentBased(TraceIdRatioBased(settings.trace_sample))
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", f"janus-{role}"),
            "service.namespace": settings.namespace,
            "service.instance.id": worker_id,
        }
    )
    provider = TracerProvider(
        sampler=sampler, resource=resource, shutdown_on_exit=False, id_generator=_Provider.ids
    )
    provider.add_span_processor(QuietSpanProcessor(exporter))
    _Provider.current = provider


def _exporter(worker_id: str, settings: ServiceSettings) -> SpanExporter | None:
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if settings.trace_dir:
        return LocalSpanStore(Path(settings.trace_dir), worker_id)
    return None


def shutdown_telemetry(timeout_s: float = 5.0) -> None:
    """Write out what is left and stop; safe to call when nothing was set up."""
    provider, _Provider.current = _Provider.current, None
    if provider is not None:
        if not provider.force_flush(int(timeout_s * 1000)):
            log.warning("some spans could not be exported within %.0f s", timeout_s)
        provider.shutdown()


def tracer() -> Tracer:
    """This process's tracer; a no-op one until :func:`setup_telemetry` has found somewhere to send spans."""
    if _Provider.current is not None:
        return _Provider.current.get_tracer("janus")
    return trace.NoOpTracer()


def inject_context(carrier: MutableMapping[str, str]) -> None:
    """Put the current span's ``traceparent`` into ``carrier``; nothing when there is no span."""
    _propagator.inject(carrier)


def extract_context(carrier: Mapping[str, str]) -> Context:
    """Context holding the remote span that ``carrier`` names, or an empty one."""
    return _propagator.extract(carrier, context=Context())


def record_span(
    name: str,
    start_ns: int,
    end_ns: int,
    trace_id: int,
    parent_span_id: int,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    span_id: int = 0,
) -> int:
    """Record a span that was measured elsewhere (an engine process); returns its span id, 0 when dropped.

    Times are nanoseconds since the Unix epoch. ``trace_id`` 0 (a step without a traced request) is dropped.
    ``span_id`` 0 draws one; another is used as it is, for spans whose id peers already know as a parent.
    """
    if _Provider.current is None or not trace_id:
        return 0
    parent = SpanContext(
        trace_id=trace_id, span_id=parent_span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    context = set_span_in_context(NonRecordingSpan(parent), Context())
    _Provider.ids.preset(span_id)
    span = tracer().start_span(name, context=context, attributes=attributes, start_time=start_ns)
    span.end(end_time=end_ns)
    return span.get_span_context().span_id
