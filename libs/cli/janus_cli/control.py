"""Talking to a running supervisor: a unix socket in its run directory, JSON lines.

The folder is its owner's alone, and so is the socket: file permissions say who may ask. A request is one
line, ``{"op": "scale", "targets": {...}}`` or ``{"op": "drain", "worker": ...}``; then come ``{"say": text}``
lines while it works, and at the end ``{"result": {...}}`` or ``{"error": {...}}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from janus_runtime.control import LINE_MAX, Say, error_of, shown
from janus_runtime.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    JanusError,
    Unavailable,
)

from janus_cli.rundir import RunDir

_PATH_MAX = 100
"""A unix socket's path is limited to about this many bytes."""
_ASK_S = 10.0
"""Whoever connects has asked by then."""
_STARTING_S = 5.0
"""A mesh that has just said that it is ready listens by then."""

Handler = Callable[[dict[str, Any], Say], Awaitable[dict[str, Any]]]


class ControlServer:
    """``async with ControlServer(run_dir, handler):`` answers until left."""

    def __init__(self, run_dir: RunDir, handler: Handler) -> None:
        self._handler = handler
        self._folder: Path | None = None
        self.path = run_dir.path / "control.sock"
        if len(os.fsencode(self.path)) > _PATH_MAX:
            self._folder = Path(tempfile.mkdtemp(prefix="janus-"))
            self.path = self._folder / "control.sock"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> ControlServer:
        self.path.unlink(missing_ok=True)  # of a supervisor that was killed
        self._server = await asyncio.start_unix_server(self._connected, self.path, limit=LINE_MAX)
        self.path.chmod(0o600)
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self.path.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)

        def send(message: Mapping[str, Any]) -> None:
            if not writer.is_closing():  # whoever asked may have gone; what was asked goes on
                writer.write(json.dumps(message).encode() + b"\n")

        try:
            send(await self._answer(reader, lambda text: send({"say": text})))
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, say: Say) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_ASK_S):
                line = await reader.readline()
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("not an object")
        except TimeoutError:
            return shown(DeadlineExceeded(f"no request came within {_ASK_S:g} s"))
        except ValueError as error:
            return shown(InvalidArgument(f"a request is one line of JSON: {error}"))
        try:
            return {"result": await self._handler(request, say)}
        except JanusError as error:
            return shown(error)


def ask(run_dir: RunDir, request: Mapping[str, Any], say: Say, timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor of ``run_dir`` and hear what it says meanwhile; its result.

    Raises the supervisor's JanusError; NotFound without a mesh; DeadlineExceeded, after which the change
    goes on in the supervisor.
    """
    deadline = time.monotonic() + timeout_s
    while not (path := run_dir.read_mesh().get("control")):
        if time.monotonic() > min(deadline, deadline - timeout_s + _STARTING_S):
            raise FailedPrecondition("the mesh is still starting", next_step="Try again when it is ready.")
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            buffer = b""
            while True:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                data = sock.recv(LINE_MAX)
                if not data:
                    raise Unavailable("the supervisor ended before it answered", reason="SUPERVISOR_LOST")
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "say" in message:
                        say(message["say"])
                    elif "error" in message:
                        raise error_of(message["error"])
                    else:
                        result: dict[str, Any] = message["result"]
                        return result
        except TimeoutError:
            raise DeadlineExceeded(
                f"the supervisor was not done within {timeout_s:g} s; it goes on",
                next_step="`janus status` shows how far it is.",
            ) from None
        except OSError as error:
            raise Unavailable(f"cannot reach the supervisor at {path}: {error}") from error
