"""Around every HTTP request: its id, its trace, its size, its time."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping

from janus_runtime.errors import InvalidArgument
from janus_runtime.telemetry import extract_context, tracer
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_gateway.generation import current_trace_id
from janus_gateway.metrics import GatewayMetrics

log = logging.getLogger("janus.gateway")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """Pure ASGI, so that streams pass through untouched.

    Sets ``scope["janus.request_id"]`` and ``scope["janus.started"]``; reads ``scope["janus.error"]``, which
    whoever answers with an error sets to the code's name.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: GatewayMetrics, operations: Mapping[str, str], max_body_bytes: int
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._operations = operations
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        scope["janus.request_id"] = (
            request_id if _REQUEST_ID.fullmatch(request_id) else f"req-{secrets.token_hex(12)}"
        )
        scope["janus.started"] = time.monotonic()
        operation = self._operations.get(scope["path"])
        if operation is None:  # probes, pages and lists are not worth a trace
            await self._app(scope, receive, self._labelled(scope, send))
            return
        carrier = {k: headers[k] for k in ("traceparent", "tracestate") if k in headers}
        with tracer().start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=extract_context(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "http.route": scope["path"],
                "janus.request_id": scope["janus.request_id"],
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            error = "CANCELLED"
            try:
                await self._app(scope, self._bounded(headers, receive), self._labelled(scope, send))
                error = scope.get("janus.error", "")
            finally:
                self._finish(scope, span, operation, error)

    def _finish(self, scope: Scope, span: trace.Span, operation: str, error: str) -> None:
        seconds = time.monotonic() - scope["janus.started"]
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
            span.set_attribute("error.type", error)
        self._metrics.request_done(operation, seconds, error)
        log.debug(
            "%s %s %s: %s in %.3f s",
            scope["janus.request_id"],
            scope["method"],
            scope["path"],
            error or "OK",
            seconds,
        )

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            declared = headers.get("content-length", "")
            message = await receive()
            seen += len(message.get("body", b""))
            if max(seen, int(declared) if declared.isdigit() else 0) > self._max_body_bytes:
                raise InvalidArgument(
                    "the request is too large",
                    reason="REQUEST_TOO_LARGE",
                    allowed=f"at most {self._max_body_bytes} bytes",
                )
            return message

        return bounded

    def _labelled(self, scope: Scope, send: Send) -> Send:
        trace_id = current_trace_id

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope["janus.request_id"]
                headers["x-trace-id"] = trace_id()
            await send(message)

        return labelled
