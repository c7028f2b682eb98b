from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from janus_runtime import telemetry
from janus_runtime._spans import QuietSpanProcessor
from janus_runtime.channel import connect
from janus_runtime.errors import NotFound
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_runtime.spanstore import LocalSpanStore
from janus_runtime.telemetry import (
    list_traces,
    read_trace,
    record_span,
    setup_telemetry,
    shutdown_telemetry,
    tracer,
)
from janus_wire.v1 import scheduler_pb2 as pb
from janus_wire.v1 import scheduler_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


def settings(folder: Path, **more: Any) -> ServiceSettings:
    return ServiceSettings(redis_url="redis://x:1", worker_id="moe-0", trace_dir=str(folder), **more)


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_TRACES_SAMPLER",
        "OTEL_SDK_DISABLED",
        "OTEL_SERVICE_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    setup_telemetry("moe", "moe-0", settings(tmp_path))
    yield tmp_path
    shutdown_telemetry()


def test_spans_go_to_the_local_store(traced: Path) -> None:
    with tracer().start_as_current_span("outer", attributes={"tokens": 3, "api_key": "hush"}) as outer:
        trace_id = outer.get_span_context().trace_id
        with tracer().start_as_current_span("inner") as inner:
            inner.add_event("first token", {"n": 1, "authorization": "hush"})
        assert outer.get_span_context().span_id != 0
    shutdown_telemetry()
    first, second = read_trace(traced, trace_id)
    assert (first["name"], second["name"]) == ("outer", "inner")
    assert second["parent_span_id"] == first["span_id"] and first["parent_span_id"] == ""
    assert first["service"] == "janus-moe" and first["worker"] == "moe-0"
    assert first["attributes"] == {"tokens": 3} and second["events"][0]["attributes"] == {"n": 1}
    assert first["start_ns"] <= second["start_ns"] <= second["end_ns"] <= first["end_ns"]
    assert "hush" not in next(traced.glob("*.jsonl")).read_text()
    assert read_trace(traced, f"{trace_id:032x}".upper()) == [first, second]
    assert [s["name"] for s in list_traces(traced)] == ["outer"]
    assert read_trace(traced, 1) == [] and read_trace(traced / "none", 1) == []


def test_spans_measured_elsewhere(traced: Path) -> None:
    with tracer().start_as_current_span("request") as request:
        context = request.get_span_context()
    one = record_span("step", 10, 20, context.trace_id, context.span_id, {"epoch": 1})
    two = record_span("layer", 12, 14, context.trace_id, one, span_id=77)
    assert two == 77 and one not in (0, 77)
    assert record_span("other", 12, 14, context.trace_id, one) != 77
    assert record_span("untraced", 1, 2, 0, 0) == 0
    shutdown_telemetry()
    spans = {s["name"]: s for s in read_trace(traced, context.trace_id)}
    assert spans["step"]["parent_span_id"] == f"{context.span_id:016x}"
    assert spans["layer"]["parent_span_id"] == f"{one:016x}" and spans["layer"]["start_ns"] == 12
    assert len(spans) == 4


@pytest.mark.asyncio
async def test_context_crosses_grpc_and_errors_carry_no_text(traced: Path) -> None:
    class Servicer(scheduler_pb2_grpc.SchedulerServiceServicer):
        async def GetLayout(self, request: Any, context: Any) -> Any:
            with tracer().start_as_current_span("inside"):
                pass
            raise NotFound("hush")

        async def WatchCohort(self, request: Any, context: Any) -> Any:
            with tracer().start_as_current_span("streaming"):
                yield pb.WatchCohortResponse()

    async with GrpcServer(settings(traced), "scheduler") as server:
        server.add(
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, Servicer(), "janus.v1.SchedulerService"
        )
        address = await server.start()
        async with connect(address) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            with tracer().start_as_current_span("client") as client:
                with pytest.raises(grpc.RpcError):
                    await stub.GetLayout(pb.GetLayoutRequest(), timeout=5)
                async for _ in stub.WatchCohort(pb.WatchCohortRequest(), timeout=5):
                    pass
    shutdown_telemetry()
    spans = {s["name"]: s for s in read_trace(traced, client.get_span_context().trace_id)}
    call, watch = spans["janus.v1.SchedulerService/GetLayout"], spans["janus.v1.SchedulerService/WatchCohort"]
    assert call["parent_span_id"] == watch["parent_span_id"] == spans["client"]["span_id"]
    assert spans["inside"]["parent_span_id"] == call["span_id"]
    assert spans["streaming"]["parent_span_id"] == watch["span_id"]
    assert call["status"] == "error" and call["attributes"]["error.type"] == "NOT_FOUND"
    assert call["kind"] == "server" and "hush" not in json.dumps(call)


def test_files_are_bounded(tmp_path: Path) -> None:
    store = LocalSpanStore(tmp_path, "moe-0", max_bytes=20_000)
    provider = TracerProvider(shutdown_on_exit=False)
    source = provider.get_tracer("t")
    ids = []
    for n in range(200):
        span = source.start_span(f"span {n}")
        span.end()
        ids.append(span.get_span_context().trace_id)  # type: ignore[union-attr]
        assert store.export([span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    store.shutdown()
    sizes = [p.stat().st_size for p in tmp_path.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 20_000
    assert read_trace(tmp_path, ids[-1]) and not read_trace(tmp_path, ids[0])


def test_half_a_line_is_skipped(tmp_path: Path) -> None:
    trace_id = "ab" * 16
    good = {"trace_id": trace_id, "span_id": "1", "start_ns": 1, "end_ns": 2, "name": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good)[:40] + "\n[]\n")
    assert read_trace(tmp_path, trace_id) == [good]


def test_sampling(tmp_path: Path) -> None:
    setup_telemetry("moe", "moe-0", settings(tmp_path, trace_sample=0.0))
    with tracer().start_as_current_span("dropped") as span:
        trace_id = span.get_span_context().trace_id
    shutdown_telemetry()
    assert read_trace(tmp_path, trace_id) == []


def test_nowhere_to_send_and_disabled_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup_telemetry("moe", "moe-0", ServiceSettings(redis_url="redis://x:1"))
    assert not tracer().start_span("x").is_recording()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    setup_telemetry("moe", "moe-0", settings(tmp_path))
    assert not tracer().start_span("x").is_recording()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    setup_telemetry("moe", "moe-0", settings(tmp_path))
    assert not tracer().start_span("x").is_recording()
    assert record_span("x", 1, 2, 3, 4) == 0
    assert list(tmp_path.iterdir()) == []


def test_otlp_where_an_endpoint_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    exporter = telemetry._exporter("moe-0", settings(tmp_path))
    assert type(exporter).__name__ == "OTLPSpanExporter"
    exporter.shutdown()


class Slow(SpanExporter):
    def __init__(self) -> None:
        self.gate, self.spans = threading.Event(), 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait(10)
        self.spans += len(spans)
        if self.spans == 3:
            raise RuntimeError("an exporter's bug")
        return SpanExportResult.SUCCESS


def test_a_slow_exporter_drops_spans_and_never_blocks() -> None:
    exporter = Slow()
    processor = QuietSpanProcessor(exporter, capacity=10, batch=4, delay_s=0.01)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    start = time.monotonic()
    for n in range(100):
        provider.get_tracer("t").start_span(str(n)).end()
    assert time.monotonic() - start < 1
    assert not processor.force_flush(50)
    exporter.gate.set()
    assert processor.force_flush(5000)
    assert processor.dropped >= 85 and exporter.spans + processor.dropped >= 100
    provider.shutdown()
    provider.get_tracer("t").start_span("late").end()  # ignored


def test_the_span_thread_sleeps_when_idle() -> None:
    """Voluntary context switches of the whole process while nothing happens."""
    code = """
import resource, tempfile, time
from janus_runtime.settings import ServiceSettings
from janus_runtime.telemetry import setup_telemetry, tracer
setup_telemetry("moe", "moe-0", ServiceSettings(redis_url="x", trace_dir=tempfile.mkdtemp()))
tracer().start_span("x").end()
time.sleep(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
time.sleep(2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert int(done.stdout) <= 3
