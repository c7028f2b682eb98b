"""One child process of the supervisor: its own session, a log file, gone when the supervisor is."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; outlives exec
if os.getppid() != int(sys.argv[1]):  # the parent died before prctl took hold
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
# In the child rather than in preexec_fn, which runs Python between fork and exec beside other threads' locks.
# Linux kills the child when the *thread* that started it ends: start children from the main thread.
_TRAMPOLINE = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT)
_POLL_S = 0.25
_TAIL_BYTES = 64 * 1024


class Process(Protocol):
    """What a child needs of :class:`subprocess.Popen`, which is one."""

    @property
    def pid(self) -> int:
        """Process id."""

    def poll(self) -> int | None:
        """Exit status; None while it runs."""

    def wait(self) -> int:
        """Block until it ends."""

    def send_signal(self, sig: int) -> None:
        """To the process itself, unless it has ended."""


class Forks(Protocol):
    """Makes processes some other way than by exec (:mod:`janus_cli.engines`)."""

    def fork(self, name: str, command: Sequence[str], env: Mapping[str, str], output: int) -> Process | None:
        """A child of this process in a session of its own; None: it has to be started the other way."""


class Child:
    """A started process. Its whole process group goes with it: engines do not outlive their worker."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        forks: Forks | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self.log_start = file.tell()
            """Where this incarnation's lines begin in the log."""
            forked = forks.fork(name, command, env, file.fileno()) if forks is not None else None
            self._process: Process = forked or subprocess.Popen(
                ((*_TRAMPOLINE, str(os.getpid())) if sys.platform == "linux" else ()) + tuple(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(env),
                # Ctrl-C in a terminal goes to the foreground group: only the supervisor gets it and then
                # stops its children in order.
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status as subprocess has it (-N: signal N); None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Sleep until it ends; its exit status."""
        await wait_for_end(self.pid, lambda: self.status is None)
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Signal the process itself, if it still runs."""
        if self.status is None:
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to whatever is left of its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, deadline_s: float) -> None:
        """SIGTERM, then SIGKILL at the deadline; returns when process and group are gone."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_s):
                await self.wait()
        except TimeoutError:
            pass
        finally:
            self.kill_group()
        self._process.wait()

    def ending(self) -> str:
        """How it ended, for people."""
        status = self.status
        if status is None:
            return "is running"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def tail(self, lines: int = 20) -> list[str]:
        """Its last log lines."""
        return list(collections.deque(read_lines(self.log, self.log_start), maxlen=lines))


async def wait_for_end(pid: int, runs: Callable[[], bool]) -> None:
    """Sleep until a child process ends; costs nothing while it runs where the kernel has pidfds."""
    try:
        descriptor = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        descriptor = -1
    if descriptor < 0:
        while runs():
            await asyncio.sleep(_POLL_S)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def read_lines(path: Path, start: int = 0) -> list[str]:
    """Lines of a log from byte ``start``, at most the last 64 KiB of it; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
