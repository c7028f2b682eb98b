"""A worker's two processes: the control process (gRPC, Redis, telemetry) and the engine it starts.

The engine's one thread owns its process's time: a busy control plane beside it would cost it the GIL
(docs/decisions/0001). The two speak over a socket pair: frames of ``u32 JSON length, u32 blob length``,
then a JSON object, then raw bytes. The engine never blocks on the control process: what it cannot send at
once waits in its memory and goes out with the next poll.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from janus_worker.forked import FORK_SERVER, ForkedProcess

_LOG = logging.getLogger("janus.worker")
_HEAD = struct.Struct("<II")
_MAX_FRAME = 256 << 20
_PR_SET_PDEATHSIG = 1
_READ = 1 << 18
STACK_SIGNAL = signal.SIGUSR1
"""An engine writes where it stands to its log."""
_STACK_S = 0.1


class ChildGone(ConnectionError):
    """The process at the other end of the link is gone."""


class Message(NamedTuple):
    """One frame of the link."""

    body: dict[str, Any]
    blob: bytes = b""


def encode(body: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """One frame as bytes."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return _HEAD.pack(len(text), len(blob)) + text + blob


class FrameParser:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Frames that ``data`` completes. Raises ValueError for a length no sender here would write."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEAD.size:
            text_size, blob_size = _HEAD.unpack_from(self._buffer)
            total = _HEAD.size + text_size + blob_size
            if total > _MAX_FRAME:
                raise ValueError(f"frame of {total} bytes on the engine link; at most {_MAX_FRAME}")
            if len(self._buffer) < total:
                break
            split = _HEAD.size + text_size
            frames.append(
                Message(json.loads(self._buffer[_HEAD.size : split]), bytes(self._buffer[split:total]))
            )
            del self._buffer[:total]
        return frames


class ControlLink:
    """The engine's end: never blocks, except in :meth:`flush`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._parser = FrameParser()
        self._backlog: collections.deque[memoryview] = collections.deque()

    def fileno(self) -> int:
        """File descriptor that is readable when :meth:`poll` has something."""
        return self._sock.fileno()

    def poll(self) -> list[Message]:
        """Frames that have arrived. Raises ChildGone when the control process is gone."""
        self._push()
        frames: list[Message] = []
        while True:
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return frames
            except ConnectionError as error:
                raise ChildGone("the control process is gone") from error
            if not data:
                if frames:
                    return frames
                raise ChildGone("the control process is gone")
            frames += self._parser.feed(data)

    def send(self, body: Mapping[str, Any], blob: bytes = b"") -> None:
        """Queue a frame and push what the socket takes."""
        self._backlog.append(memoryview(encode(body, blob)))
        self._push()

    def _push(self) -> None:
        while self._backlog:
            head = self._backlog[0]
            try:
                sent = self._sock.send(head)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise ChildGone("the control process is gone") from error
            if sent == len(head):
                self._backlog.popleft()
            else:
                self._backlog[0] = head[sent:]

    def flush(self, timeout_s: float = 1.0) -> None:
        """Send the backlog before exit; gives up after ``timeout_s``."""
        self._sock.settimeout(timeout_s)
        with contextlib.suppress(OSError, ChildGone):
            while self._backlog:
                self._sock.sendall(self._backlog.popleft())

    def close(self) -> None:
        """Close the socket; the control process sees the end."""
        self._sock.close()


def engine_link(fd: int, parent: int) -> ControlLink:
    """The link of an engine process; from here on the process dies with its ``parent``, the control process.

    ``parent`` 0: the fork server that started it sees to that.
    """
    if not parent:
        return ControlLink(socket.socket(fileno=fd))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise ChildGone("the control process was gone before the engine started")
    # Ctrl-C in a terminal reaches the whole group; the control process decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return ControlLink(socket.socket(fileno=fd))


class EngineProcess:
    """The control process's end, in asyncio."""

    def __init__(self, process: asyncio.subprocess.Process | ForkedProcess, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock
        self._parser = FrameParser()
        self._ready: collections.deque[Message] = collections.deque()
        self._sending = asyncio.Lock()
        self._posts: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, module: str, arguments: Sequence[str]) -> EngineProcess:
        """Run ``python -m module --fd N --parent PID arguments``; its stderr is ours.

        Where a fork server is named (:mod:`janus_worker.forkserver`) it is forked there, with the same result.
        """
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        ours.setblocking(False)
        process: asyncio.subprocess.Process | ForkedProcess
        with theirs:
            if path := os.environ.get(FORK_SERVER):
                try:
                    return cls(await ForkedProcess.start(path, module, arguments, theirs.fileno()), ours)
                except (OSError, ValueError, TimeoutError) as error:
                    _LOG.warning(
                        "no engine from the fork server at %s (%s); starting one by itself", path, error
                    )
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, "--fd", str(theirs.fileno()), "--parent", str(os.getpid()), *arguments,
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    async def receive(self) -> Message:
        """The next frame. Raises ChildGone, with the exit status, when the engine is gone."""
        loop = asyncio.get_running_loop()
        while not self._ready:
            try:
                data = await loop.sock_recv(self._sock, _READ)
            except ConnectionError:
                data = b""
            if not data:
                raise ChildGone(await self._epitaph())
            self._ready.extend(self._parser.feed(data))
        return self._ready.popleft()

    async def send(self, body: Mapping[str, Any], blob: bytes = b"") -> None:
        """Send a frame whole. Raises ChildGone when the engine is gone."""
        try:
            # Frames of concurrent callers must not interleave.
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(self._sock, encode(body, blob))
        except OSError as error:  # the engine is gone, or :meth:`stop` has closed the link
            raise ChildGone(await self._epitaph()) from error

    def post(self, body: Mapping[str, Any]) -> None:
        """Send a frame by and by; when the engine is gone nobody misses it."""
        task = asyncio.ensure_future(self._post(body))
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def _post(self, body: Mapping[str, Any]) -> None:
        with contextlib.suppress(ChildGone):
            await self.send(body)

    async def _epitaph(self) -> str:
        try:
            status = await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            return f"engine (pid {self.pid}) closed its link but runs on"
        how = f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        return f"engine (pid {self.pid}) ended with {how}; its last lines are above"

    async def stop(self, grace_s: float = 1.5) -> None:
        """Ask it to stop by closing the link, then kill it; its log says where it stood."""
        self._sock.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            _LOG.warning("engine pid %d did not stop in %g s; killing it", self.pid, grace_s)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(STACK_SIGNAL)
                await asyncio.sleep(_STACK_S)
                self._process.kill()
            await self._process.wait()
