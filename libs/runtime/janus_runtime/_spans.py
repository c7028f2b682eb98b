"""A span processor that batches while spans come and sleeps, without a timer, when none do."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("janus.telemetry")


class QuietSpanProcessor(SpanProcessor):
    """Bounded queue and one daemon thread; the oldest spans are dropped, and counted, when it overflows.

    OpenTelemetry's own batch processor wakes up on a timer for ever; an idle mesh must cost no CPU.
    """

    def __init__(
        self, exporter: SpanExporter, *, capacity: int = 16384, batch: int = 512, delay_s: float = 0.5
    ) -> None:
        self._exporter = exporter
        self._batch = batch
        self._delay_s = delay_s
        self._queue: deque[ReadableSpan] = deque()
        self._capacity = capacity
        self._wake = threading.Condition()
        self._urgent = False
        self._closed = False
        self._busy = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="janus-spans", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do until a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished, sampled span."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._wake:
            if self._closed:
                return
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                if self.dropped == 0:
                    log.warning("span queue full: dropping the oldest; lower trace_sample")
                self.dropped += 1
            self._queue.append(span)
            if len(self._queue) in (1, self._batch):
                self._wake.notify_all()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True when everything queued so far was exported within the time."""
        deadline = time.monotonic() + timeout_millis / 1000
        with self._wake:
            self._urgent = True
            self._wake.notify_all()
            while (self._queue or self._busy) and self._thread.is_alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._wake.wait(left)
            self._urgent = False
            return not self._queue and not self._busy

    def shutdown(self) -> None:
        """Export what is left, then stop the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout=5.0)
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed and not self._queue:
                    return
                if not (self._urgent or self._closed or len(self._queue) >= self._batch):
                    self._wake.wait(self._delay_s)  # let a batch gather; at most one wake-up per delay
                spans = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
                self._busy = True
            try:
                if self._exporter.export(spans) is not SpanExportResult.SUCCESS:
                    self.dropped += len(spans)
            except Exception:  # an exporter's bug must not end tracing, let alone serving
                self.dropped += len(spans)
                log.exception("span export failed; %d spans lost", len(spans))
            finally:
                with self._wake:
                    self._busy = False
                    self._wake.notify_all()
