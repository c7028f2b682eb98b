"""The run directory of one local mesh: logs, spans, Redis's folder, ``mesh.json``, and the lock that says it runs.

A supervisor holds an exclusive lock on ``lock`` as long as it lives, whatever becomes of it: the lock, not a
process id in a file, tells whether a mesh runs there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_runtime.errors import FailedPrecondition, NotFound

SUPERVISOR_LOG = "supervisor.log"
"""In logs/: what a detached supervisor says."""


def default_run_dir() -> Path:
    """``JANUS_RUN_DIR``, else ``$XDG_STATE_HOME/janus``, else ``~/.local/state/janus``."""
    chosen = os.environ.get("JANUS_RUN_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "janus"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Where one local mesh keeps its files."""

    path: Path

    @property
    def logs(self) -> Path:
        """One ``<worker id>.log`` per service."""
        return self.path / "logs"

    @property
    def traces(self) -> Path:
        """The local span store."""
        return self.path / "traces"

    @property
    def redis(self) -> Path:
        """Folder of the private Redis."""
        return self.path / "redis"

    @property
    def mesh_file(self) -> Path:
        """What ``janus status`` and ``janus down`` read."""
        return self.path / "mesh.json"

    def create(self) -> None:
        """Make the folders, readable by their owner alone: prompts may be in logs, a socket is in redis/."""
        try:
            for folder in (self.path, self.logs, self.traces):
                folder.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot use the run directory {self.path}: {error.strerror}",
                next_step="Pass --run-dir with a folder you may write to.",
            ) from error

    def clear(self) -> None:
        """Logs and spans of the mesh before this one make room. Call it with the lock held."""
        for folder, pattern in ((self.logs, "*.log"), (self.traces, "*.jsonl")):
            for path in folder.glob(pattern):
                if path.name != SUPERVISOR_LOG:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; FailedPrecondition while another mesh runs there."""
        with (self.path / "lock").open("a+") as file:
            if not _try_lock(file.fileno()):
                raise FailedPrecondition(
                    f"a mesh runs in {self.path} already (supervisor {self._pid_text()})",
                    reason="MESH_RUNS",
                    next_step="Stop it with `janus down`, or start another with --run-dir.",
                )
            yield

    def running(self) -> bool:
        """True while a supervisor holds the directory."""
        try:
            with (self.path / "lock").open("r+") as file:
                return not _try_lock(file.fileno())
        except FileNotFoundError:
            return False

    def write_mesh(self, mesh: Mapping[str, Any]) -> None:
        """Replace mesh.json in one step."""
        scratch = self.mesh_file.with_suffix(".tmp")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(mesh, indent=1))
        scratch.replace(self.mesh_file)

    def read_mesh(self) -> dict[str, Any]:
        """mesh.json of the mesh that runs here; NotFound when none does."""
        if self.running():
            with contextlib.suppress(FileNotFoundError):
                mesh: dict[str, Any] = json.loads(self.mesh_file.read_text())
                return mesh
        raise NotFound(
            f"no mesh runs in {self.path}",
            reason="NO_MESH",
            next_step="Start one with `janus up`, or name its folder with --run-dir.",
        )

    def _pid_text(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return f"process {json.loads(self.mesh_file.read_text())['pid']}"
        return "starting"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
