"""Client channels: keepalive, TLS where configured, trace context in the metadata of every call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata

from janus_runtime.errors import FailedPrecondition
from janus_runtime.settings import ServiceSettings
from janus_runtime.telemetry import inject_context

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest gRPC message either side accepts (logits of a long answer are the largest)."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # While calls are open a dead peer is noticed within 30 s; an idle channel sends nothing.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Workers restart: look again soon rather than after the default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def connect(address: str, settings: ServiceSettings | None = None) -> grpc.aio.Channel:
    """A channel to ``host:port``. It connects at the first call; give each call a timeout."""
    interceptors: list[grpc.aio.ClientInterceptor] = [
        _UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream(),
    ]  # fmt: skip
    if settings is not None and settings.tls:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read_pem(settings.tls_ca, "--tls-ca"),
            private_key=read_pem(settings.tls_key, "--tls-key"),
            certificate_chain=read_pem(settings.tls_cert, "--tls-cert"),
        )
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS, interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)


def read_pem(path: str, flag: str) -> bytes | None:
    """Bytes of a PEM file, None for an empty path; FailedPrecondition when it cannot be read."""
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read {path}: {error.strerror}",
            field=flag,
            reason="TLS_FILE",
            next_step="Check path and rights.",
        ) from error


def _with_context(details: ClientCallDetails) -> ClientCallDetails:
    carrier: dict[str, str] = {}
    inject_context(carrier)
    if not carrier:
        return details
    metadata = Metadata(*(details.metadata or ()))
    for key, value in carrier.items():
        if metadata.get(key) is None:
            metadata.add(key, value)
    return ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


# grpc.aio sorts interceptors by type and looks at one type of each: hence four classes.
class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details), request_iterator)
