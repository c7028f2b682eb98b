"""The fork server of a local mesh (:mod:`janus_worker.forkserver`): torch is imported once, not by every engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from janus_cli.child import Child

VARIABLE = "JANUS_FORK_SERVER"
MODULES = ("janus_attention.engine_main", "janus_moe.engine_main")
_PAUSE_S = 1.0
_STOP_S = 5.0


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
