"""The fork servers of a local mesh: what engines need (:mod:`janus_worker.forkserver`) and what services need
(:mod:`janus_cli.prefork`) is imported once, not at every start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from janus_cli import prefork
from janus_cli.child import Child

VARIABLE = "JANUS_FORK_SERVER"
MODULES = ("janus_attention.engine_main", "janus_moe.engine_main")
_PAUSE_S = 1.0
_STOP_S = 5.0
_READY_S = 60.0
_FORK_S = 5.0

_LOG = logging.getLogger("janus.supervisor")


class EngineServer:
    """Started before the workers, and again when it dies; while there is none, workers start engines themselves."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        """``env``: as the workers have it."""
        self._log = log
        self._env = env
        # Short, as a socket's path must be; for this user alone, as it starts processes.
        self._folder = Path(tempfile.mkdtemp(prefix="janus-engines-"))
        self._child: Child | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What tells a worker of it; empty where it cannot run."""
        return {VARIABLE: str(self._folder / "socket")} if self._child is not None else {}

    def start(self) -> None:
        """Start it, from the main thread; it answers when it has imported what engines need."""
        if not hasattr(os, "pidfd_open"):
            return
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        command = (sys.executable, "-m", "janus_worker.forkserver", "--socket", str(path), *MODULES)
        self._child = Child("engines", command, self._env, self._log)

    async def keep(self) -> None:
        """Start it again whenever it ends; until cancelled."""
        while self._child is not None:
            await self._child.wait()
            await asyncio.sleep(_PAUSE_S)
            self.start()

    async def stop(self) -> None:
        """End it, after the workers."""
        if self._child is not None:
            await self._child.stop(_STOP_S)
            self._child = None
        shutil.rmtree(self._folder, ignore_errors=True)


class ServiceServer:
    """Forks services (:class:`janus_cli.child.Forks`); while it cannot, they are started like any program."""

    def __init__(self, log: Path, env: Mapping[str, str], modules: Sequence[str]) -> None:
        """``modules``: those that ``python -m`` would run; ``env``: as the services have it."""
        self._log = log
        self._env = env
        self._modules = tuple(modules)
        self._folder = Path(tempfile.mkdtemp(prefix="janus-services-"))
        self._child: Child | None = None
        self._adopts = False
        self._ready = False

    async def start(self) -> None:
        """Returns when it answers, or will not."""
        self._adopts = bool(self._modules) and hasattr(os, "pidfd_open") and prefork.adopt_orphans(True)
        if not self._adopts:
            return
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        reading, writing = os.pipe()
        command = (
            sys.executable, "-m", "janus_cli.prefork", "--socket", str(path), "--ready", str(writing),
            *self._modules,
        )  # fmt: skip
        try:
            self._child = Child("services", command, self._env, self._log, pass_fds=(writing,))
        finally:
            os.close(writing)
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(reading, told.set)
        try:
            async with asyncio.timeout(_READY_S):
                await told.wait()
            self._ready = bool(os.read(reading, 1))
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(reading)
            os.close(reading)

    def fork(self, name: str, command: Sequence[str], env: Mapping[str, str], output: int) -> Forked | None:
        if not self._ready or tuple(command[:2]) != (sys.executable, "-m") or command[2] not in self._modules:
            return None
        body = {
            "name": name, "module": command[2], "arguments": list(command[3:]), "environment": dict(env),
        }  # fmt: skip
        silence = os.open(os.devnull, os.O_RDONLY)
        try:
            return Forked(prefork.ask(str(self._folder / "socket"), body, (silence, output), _FORK_S))
        except OSError as error:
            _LOG.warning("%s is not forked but started: %s", name, error)
            return None
        finally:
            os.close(silence)

    async def keep(self) -> None:
        """Start it again whenever it ends; until cancelled."""
        while self._child is not None:
            await self._child.wait()
            self._ready = False
            await asyncio.sleep(_PAUSE_S)
            await self.start()

    async def stop(self) -> None:
        """End it, after the services."""
        self._ready = False
        if self._child is not None:
            await self._child.stop(_STOP_S)
            self._child = None
        if self._adopts:
            prefork.adopt_orphans(False)
        shutil.rmtree(self._folder, ignore_errors=True)


class Forked:
    """A child of this process that another has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        status = self._reap(0)
        assert status is not None
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def _reap(self, options: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # someone else has reaped it
                self._status = 1
            else:
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status
