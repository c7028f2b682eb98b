"""An engine that a fork server has started, to the control process like one that it started itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Any

FORK_SERVER = "JANUS_FORK_SERVER"
"""Environment variable: path of the server's socket."""
_LENGTH = struct.Struct("<I")
_MAX_REQUEST = 1 << 20
_ANSWER_S = 60.0
"""The server answers when it has imported what engines need."""
_LOST = 1
"""Exit status where the server, which knows it, is gone."""


class ForkedProcess:
    """What :class:`janus_worker.link.EngineProcess` needs of a process."""

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pidfd: int
    ) -> None:
        self.pid = pid
        self._reader = reader
        self._writer = writer
        self._pidfd = pidfd
        self._status: int | None = None
        self._waiting = asyncio.Lock()

    @classmethod
    async def start(cls, path: str, module: str, arguments: Sequence[str], link: int) -> ForkedProcess:
        """Ask the server at ``path``. Raises OSError, ValueError or TimeoutError when it gives none."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(5.0)
            connection.connect(path)
            body = {"module": module, "arguments": list(arguments), "environment": dict(os.environ)}
            send_request(connection, body, [link, 2])
            connection.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await reader.readline()
            pid = int(json.loads(line)["pid"]) if line else 0
            if not pid:
                raise ConnectionError("it refused; see its log")
            return cls(pid, reader, writer, os.pidfd_open(pid))
        except BaseException:
            writer.close()  # and with it the engine, if there is one
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            raise

    async def wait(self) -> int:
        """Exit status as asyncio.subprocess has it, once it has ended."""
        async with self._waiting:
            if self._status is None:
                line = b""
                with contextlib.suppress(OSError):
                    line = await self._reader.readline()
                if line:
                    self._status = int(json.loads(line)["status"])
                else:  # the server is gone; the engine may well live
                    await self._gone()
                    self._status = _LOST
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
        return self._status

    async def _gone(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)

    def kill(self) -> None:
        """SIGKILL. Raises ProcessLookupError when it has ended."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError when it has ended."""
        signal.pidfd_send_signal(self._pidfd, number)

    def __del__(self) -> None:
        os.close(self._pidfd)


def send_request(connection: socket.socket, body: dict[str, Any], descriptors: Sequence[int]) -> None:
    """The client's side: one request with its descriptors; blocks."""
    text = json.dumps(body).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(text))], list(descriptors))
    connection.sendall(text)


def receive_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and its two descriptors. Raises ValueError, its descriptors closed, for anything else."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    try:
        size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        if not 0 < size <= _MAX_REQUEST or len(descriptors) != 2:
            raise ValueError(f"a request of {size} bytes with {len(descriptors)} descriptors")
        text = b""
        while len(text) < size:
            data = connection.recv(size - len(text))
            if not data:
                raise ValueError(f"a request cut short after {len(text)} of {size} bytes")
            text += data
        request = json.loads(text)
        if not isinstance(request, dict):
            raise ValueError("a request that is no object")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return request, descriptors
