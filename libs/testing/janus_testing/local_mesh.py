"""A real mesh, processes and all, for a test: the same supervisor that ``janus up`` runs, in a process of its own.

The supervisor ends when its standard input does: however the test's process ends, nothing stays behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from janus_cli.control import ask
from janus_cli.rundir import RunDir

_START_S = 180.0
_STOP_S = 60.0


class MeshError(RuntimeError):
    """The mesh did not start or stop; carries what the supervisor said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process of the mesh."""

    role: str
    """gateway, attention, moe, scheduler, autoscaler."""
    index: int
    pid: int
    address: str
    """host:port of its gRPC service."""
    engine_pid: int = 0
    """Attention and MoE workers: the engine's process."""

    @property
    def worker_id(self) -> str:
        """E.g. ``moe-0``."""
        return f"{self.role}-{self.index}"


class LocalMesh:
    """``with LocalMesh(model_dir, attention=2, experts=3) as mesh: ... mesh.http ...``.

    Further keyword arguments are flags of ``janus up``: ``slots=4``, ``gating="attention"``, ``restart=False``,
    ``kv_tokens=4096``. ``env`` adds to the environment of every service (``JANUS_<ROLE>_<FIELD>``). Raises
    MeshError, with the last log lines of whoever failed, when it does not come up.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        attention: int = 1,
        experts: int = 1,
        run_dir: Path | None = None,
        env: dict[str, str] | None = None,
        start_deadline_s: float = _START_S,
        **flags: object,
    ) -> None:
        self._own_dir = tempfile.TemporaryDirectory(prefix="janus-mesh-") if run_dir is None else None
        self.run_dir = run_dir or Path(self._own_dir.name if self._own_dir else "")
        self._command = [
            sys.executable, "-m", "janus_cli", "up", "--json", "--hold-stdin", "--run-dir", str(self.run_dir),
            "--model", str(model_dir), "--attention", str(attention), "--experts", str(experts),
            "--start-deadline", str(start_deadline_s),
        ]  # fmt: skip
        for name, value in flags.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                self._command.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                self._command += [f"--{flag}", str(value)]
        # A Redis of the environment is not a test's to use: each mesh has its own.
        kept = {
            k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "JANUS_REDIS_URL", "JANUS_RUN_DIR")
        }
        self._env = {**kept, **(env or {})}
        self._start_deadline_s = start_deadline_s
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=60)
        self._relay: threading.Thread | None = None
        self._mesh: dict[str, Any] = {}

    # -- life -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start and wait until it is whole."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self._env, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stderr is not None
        self._relay = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._relay.start()
        # The supervisor keeps the deadline itself; it then ends, and so does this read.
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise MeshError("the mesh did not start:\n" + "\n".join(self._said))
        self._mesh = json.loads(line)
        return self

    def stop(self) -> None:
        """Stop everything. Raises MeshError when the supervisor had to be killed. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.close()
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its children die with it
            process.wait()
            raise MeshError("the supervisor did not end:\n" + "\n".join(self._said)) from None
        finally:
            process.stdout.close()
            if self._relay is not None:
                self._relay.join(5.0)
            process.stderr.close()
            if self._own_dir is not None:
                self._own_dir.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def http(self) -> str:
        """host:port of the OpenAI-compatible API."""
        return str(self._mesh["http"])

    @property
    def grpc(self) -> str:
        """host:port of the gateway's gRPC service."""
        return str(self._mesh["grpc"])

    @property
    def gateways(self) -> list[str]:
        """host:port of each gateway's gRPC service; they keep them when they are started again."""
        return [str(gateway["grpc"]) for gateway in self._mesh["gateways"]]

    @property
    def redis_url(self) -> str:
        """The mesh's Redis."""
        return str(self._mesh["redis"])

    @property
    def traces(self) -> Path:
        """The local span store."""
        return self.run_dir / "traces"

    @property
    def supervisor_pid(self) -> int:
        """Process id of the supervisor."""
        if self._process is None:
            raise MeshError("the mesh is not running")
        return self._process.pid

    @property
    def services(self) -> list[Service]:
        """Every service, as it is now: a restarted one has a new pid and address."""
        mesh = json.loads((self.run_dir / "mesh.json").read_text())
        return [
            Service(
                role=s["role"],
                index=s["index"],
                pid=s["pid"],
                address=s["address"],
                engine_pid=s.get("engine_pid", 0),
            )
            for s in mesh["services"]
        ]

    def service(self, worker_id: str) -> Service:
        """One service by its name; KeyError when there is none."""
        for service in self.services:
            if service.worker_id == worker_id:
                return service
        raise KeyError(worker_id)

    def log(self, worker_id: str) -> str:
        """The service's log so far."""
        return (self.run_dir / "logs" / f"{worker_id}.log").read_text(errors="replace")

    @property
    def said(self) -> list[str]:
        """The supervisor's last lines."""
        return list(self._said)

    # -- change ---------------------------------------------------------------------------------------

    def scale(
        self, *, attention: int | None = None, experts: int | None = None, timeout_s: float = 300.0
    ) -> dict[str, Any]:
        """What ``janus scale`` does; returns when it is done. Raises the supervisor's JanusError."""
        given = {"attention": attention, "experts": experts}
        targets = {name: count for name, count in given.items() if count is not None}
        return self._ask({"op": "scale", "targets": targets}, timeout_s)

    def drain(self, worker_id: str, *, timeout_s: float = 300.0) -> dict[str, Any]:
        """What ``janus drain`` does; returns when the worker has left. Raises the supervisor's JanusError."""
        return self._ask({"op": "drain", "worker": worker_id}, timeout_s)

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        return ask(RunDir(self.run_dir), request, self._said.append, timeout_s)

    # -- faults ---------------------------------------------------------------------------------------

    def kill(self, worker_id: str, number: int = signal.SIGKILL) -> int:
        """Signal a service's control process (its engine dies with it); the pid that was signalled."""
        pid = self.service(worker_id).pid
        os.kill(pid, number)
        return pid

    def wait_restarted(self, worker_id: str, old_pid: int, timeout_s: float = 60.0) -> Service:
        """The service once it runs under another pid and is ready; MeshError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            service = self.service(worker_id)
            if service.pid != old_pid:
                return service
            time.sleep(0.1)
        raise MeshError(f"{worker_id} was not restarted within {timeout_s:g} s:\n" + "\n".join(self._said))

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._said.append(line.rstrip("\n"))
