"""The gRPC server of a service: health, reflection, TLS, errors with details, a span per call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from janus_runtime._interceptor import CallInterceptor
from janus_runtime.channel import MAX_MESSAGE_BYTES, read_pem
from janus_runtime.errors import FailedPrecondition
from janus_runtime.settings import ServiceSettings

log = logging.getLogger("janus.server")

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two servers on one port would share its connections silently.
    ("grpc.so_reuseport", 0),
    # Clients ping every 20 s while calls are open; do not punish them.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class GrpcServer:
    """::

        async with GrpcServer(settings, "moe") as server:
            server.add(moe_pb2_grpc.add_ExpertServiceServicer_to_server, servicer, "janus.v1.ExpertService")
            address = await server.start()      # "host:port" to advertise
            server.set_serving(True)

    Servicer methods are ``async def`` (unary), or async generators or coroutines with ``context.write``
    (streams). A JanusError they raise becomes a status with google.rpc details. Health says NOT_SERVING
    until ``set_serving(True)``.
    """

    def __init__(self, settings: ServiceSettings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._server = grpc.aio.server(interceptors=[CallInterceptor()], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.port = 0

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: Any, name: str) -> None:
        """Register a servicer; before :meth:`start`. ``name``: full name, for reflection and health."""
        add_to_server(servicer, self._server)
        self._services.append(name)

    async def start(self) -> str:
        """Bind and serve; returns the address to advertise. FailedPrecondition when the port is taken."""
        await self._set(False)
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        bind = f"{_bracket(self._settings.host)}:{self._settings.grpc_port}"
        try:
            self.port = self._bind(bind)
        except RuntimeError as error:
            raise FailedPrecondition(
                f"{self._role}: cannot listen on {bind}: port {self._settings.grpc_port} is in use "
                "or the address is not of this machine",
                reason="PORT_IN_USE",
                next_step="Choose another --grpc-port (0 picks a free one) or --host.",
            ) from error
        await self._server.start()
        return f"{_bracket(self._settings.advertised)}:{self.port}"

    def _bind(self, bind: str) -> int:
        settings = self._settings
        if not settings.tls_cert:
            return self._server.add_insecure_port(bind)
        key = read_pem(settings.tls_key, "--tls-key")
        cert = read_pem(settings.tls_cert, "--tls-cert")
        authority = read_pem(settings.tls_ca, "--tls-ca")
        if key is None or cert is None:
            raise FailedPrecondition("a certificate and its key go together", field="--tls-cert / --tls-key")
        credentials = grpc.ssl_server_credentials(
            [(key, cert)], root_certificates=authority, require_client_auth=authority is not None
        )
        return self._server.add_secure_port(bind, credentials)

    def set_serving(self, serving: bool) -> asyncio.Task[None]:
        """Tell health checks and watchers; the task may be awaited but need not be."""
        task = asyncio.ensure_future(self._set(serving))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if serving else status.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, value)

    async def stop(self, grace_s: float = 2.0) -> None:
        """No new calls; those open have ``grace_s`` seconds, then they are cancelled."""
        if self._stopped:
            return
        self._stopped = True
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Until the server stops."""
        await self._server.wait_for_termination()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
