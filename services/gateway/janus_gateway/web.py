"""uvicorn inside our event loop: our signals, our socket, no timer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from janus_runtime.errors import FailedPrecondition
from starlette.types import ASGIApp

from janus_gateway.config import GatewaySettings


def bind(settings: GatewaySettings) -> socket.socket:
    """The listening socket. FailedPrecondition when the port is taken or the host is not ours."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host or None, settings.http_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise _refused(settings, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _refused(settings, error) from error
    sock.setblocking(False)
    return sock


def _refused(settings: GatewaySettings, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(
        f"gateway: cannot listen on {settings.host}:{settings.http_port}: {error.strerror or error}",
        reason="PORT_IN_USE",
        next_step="Choose another --http-port (0 picks a free one) or --host.",
    )


class HttpServer(uvicorn.Server):
    """uvicorn's own loop wakes ten times a second and takes the signal handlers; this one does neither."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                http="h11",
                ws="none",
                loop="none",
                server_header=False,
                date_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
                ssl_certfile=settings.tls_cert if settings.http_tls else None,
                ssl_keyfile=settings.tls_key if settings.http_tls else None,
            )
        )
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def main_loop(self) -> None:
        """Until :meth:`stop`."""
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """run_service has them."""
        yield

    def start(self, sock: socket.socket) -> asyncio.Task[None]:
        """Serve on ``sock`` from now on; the task ends with :meth:`stop`, or with an error."""
        self._task = asyncio.get_running_loop().create_task(self.serve([sock]), name="janus-http")
        return self._task

    async def stop(self) -> None:
        """Close the socket and what is still open."""
        self.should_exit = True
        self._stop.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
