"""The gateway's own metrics, declared in janus_runtime.metrics: GenAI semantic conventions, else janus_gateway_*.

Cardinality is bounded: the only label values are the served model's name, the operations, and the
google.rpc codes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from janus_runtime.metrics import BY_NAME
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

CHAT, COMPLETION, GENERATE = "chat", "text_completion", "generate_content"
"""``gen_ai.operation.name``: chat completions, completions, gRPC's Generate."""

_NOT_OURS = (
    "",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "UNAUTHENTICATED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
)
"""Ends of a request that are no failure of the mesh; refusals are counted as such."""


@dataclass(slots=True)
class Totals:
    """The same counts for /api/state, since start."""

    requests: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class GatewayMetrics:
    """One per gateway, in a registry of its own."""

    def __init__(self, model: str) -> None:
        disable_created_metrics()  # a series beside each other one, with when the process began
        self.registry = CollectorRegistry()
        self.totals = Totals()
        self.started = time.time()
        self._model = model
        self._duration = self._histogram("gen_ai_server_request_duration_seconds", SECONDS)
        self._ttft = self._histogram("gen_ai_server_time_to_first_token_seconds", TTFT)
        self._tpot = self._histogram("gen_ai_server_time_per_output_token_seconds", TPOT)
        self._usage = self._histogram("gen_ai_client_token_usage", TOKENS)
        self._queue = self._histogram("janus_gateway_queue_seconds", SECONDS)
        self.in_flight = self._gauge("janus_gateway_in_flight_sequences")
        self._rejected = self._counter("janus_gateway_rejected_requests")
        self._resumed = self._counter("janus_gateway_resumed_streams")
        self._cancelled = self._counter("janus_gateway_cancelled_streams")
        self.epoch = self._gauge("janus_gateway_cohort_epoch")

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        declared = BY_NAME[name]
        return Histogram(name, declared.help, declared.labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str) -> Counter:
        return Counter(name, BY_NAME[name].help, BY_NAME[name].labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(name, BY_NAME[name].help, BY_NAME[name].labels, registry=self.registry)

    def _labels(self, operation: str) -> tuple[str, str, str]:
        return operation, "janus", self._model

    def request_done(self, operation: str, seconds: float, error_type: str = "") -> None:
        """A request ended; ``error_type``: the google.rpc code's name, empty when it went well."""
        self.totals.requests += 1
        self.totals.failed += error_type not in _NOT_OURS
        self._duration.labels(*self._labels(operation), error_type).observe(seconds)

    def rejected(self, code: str) -> None:
        """A request was refused."""
        self.totals.rejected += 1
        self._rejected.labels(code).inc()

    def first_token(self, operation: str, seconds: float, queue_us: int) -> None:
        """A sequence's first token came."""
        self._ttft.labels(*self._labels(operation)).observe(seconds)
        if queue_us:
            self._queue.observe(queue_us / 1e6)

    def token(self) -> None:
        """A token came; histograms get a sequence's tokens at its end."""
        self.totals.completion_tokens += 1

    def sequence_done(self, operation: str, prompt: int, completion: int, decode_s: float) -> None:
        """A sequence ended; ``decode_s``: from its first token to its last."""
        self.totals.prompt_tokens += prompt
        self._usage.labels(*self._labels(operation), "input").observe(prompt)
        self._usage.labels(*self._labels(operation), "output").observe(completion)
        if completion > 1:
            self._tpot.labels(*self._labels(operation)).observe(decode_s / (completion - 1))

    def resumed(self) -> None:
        """A stream goes on at another worker."""
        self.totals.resumed += 1
        self._resumed.inc()

    def cancelled(self) -> None:
        """A client went away mid-stream."""
        self.totals.cancelled += 1
        self._cancelled.inc()

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
