"""Local span store: JSON lines in a folder, one bounded file per process; what ``janus trace`` reads.

A line: ``{"trace_id": hex32, "span_id": hex16, "parent_span_id": hex16 | "", "name", "kind", "service",
"worker", "start_ns", "end_ns", "status", "message", "attributes": {...}, "events": [{"name", "time_ns",
"attributes"}]}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

MAX_BYTES = 64 * 1024 * 1024
"""A file is rotated at this size; one older file is kept beside it."""
_SECRET = re.compile(r"authorization|api[-_.]?key|password|secret|cookie|credential", re.IGNORECASE)


class LocalSpanStore(SpanExporter):
    """Appends spans to ``<folder>/<worker_id>-<pid>.jsonl``; rotated to ``.1.jsonl`` at ``max_bytes``."""

    def __init__(self, folder: Path, worker_id: str, *, max_bytes: int = MAX_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{worker_id}-{os.getpid()}.jsonl"
        self._max_bytes = max_bytes
        self._file = self.path.open("ab")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a batch; a full disk loses spans, never a request."""
        data = b"".join(
            json.dumps(_to_dict(s), separators=(",", ":"), default=str).encode() + b"\n" for s in spans
        )
        if self._file.tell() + len(data) > self._max_bytes and self._file.tell():
            self._file.close()
            self.path.replace(self.path.with_suffix(".1.jsonl"))
            self._file = self.path.open("ab")
        self._file.write(data)
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Every export is flushed already."""
        return True


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    items = (attributes or {}).items()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in items if not _SECRET.search(k)}


def _to_dict(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None  # the processor queues spans with a context only
    resource = span.resource.attributes
    return {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "name": span.name,
        "kind": span.kind.name.lower(),
        "service": resource.get("service.name", ""),
        "worker": resource.get("service.instance.id", ""),
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name.lower(),
        "message": span.status.description or "",
        "attributes": _plain(span.attributes),
        "events": [
            {"name": e.name, "time_ns": e.timestamp, "attributes": _plain(e.attributes)} for e in span.events
        ],
    }


def _lines(folder: Path, containing: bytes = b"") -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            continue  # rotated away between listing and opening
        with file:
            for line in file:
                if containing and containing not in line:
                    continue
                try:
                    span = json.loads(line)
                except ValueError:
                    continue  # the last line of a process that was killed while writing
                if isinstance(span, dict) and {"trace_id", "span_id", "start_ns", "end_ns"} <= span.keys():
                    yield span


def read_trace(folder: str | Path, trace_id: str | int) -> list[dict[str, Any]]:
    """Every stored span of one trace, by start time; empty when there is none.

    ``trace_id``: 32 hex digits (leading zeros may be left out), or the number.
    """
    wanted = f"{trace_id:032x}" if isinstance(trace_id, int) else trace_id.strip().lower().zfill(32)
    found = [s for s in _lines(Path(folder), wanted.encode()) if s["trace_id"] == wanted]
    return sorted(found, key=lambda s: (s["start_ns"], s["end_ns"]))


def list_traces(folder: str | Path, limit: int = 20) -> list[dict[str, Any]]:
    """Root spans (those without a parent), the latest first."""
    roots = list(_lines(Path(folder), b'"parent_span_id":""'))
    return sorted(roots, key=lambda s: -int(s["start_ns"]))[:limit]
