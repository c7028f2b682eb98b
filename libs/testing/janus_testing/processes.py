"""Engines as real processes over UCX, without gRPC, Redis and control processes: for measuring a step itself.

The same calls as :class:`janus_testing.inprocess.InProcessMesh`. Start it from the main thread: Linux ends an
engine when the thread that started it ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from janus_attention.engine import EngineOptions as AttentionOptions

from janus_testing.containers import Containers
from janus_testing.inprocess import InProcessMesh, Worker
from janus_testing.namespaces import Nodes


class ProcessMesh(InProcessMesh):
    """m attention and n MoE engine processes on this machine; ``threads`` each."""

    def __init__(
        self,
        model_dir: str | Path,
        *,
        attention: int = 1,
        experts: int = 1,
        threads: int = 1,
        dtype: str = "float32",
        expert_dtype: str = "",
        attention_dtype: str = "same",
        attention_options: AttentionOptions | None = None,
        timeout_s: float = 120.0,
        namespaces: Nodes | Containers | None = None,
        **options: Any,
    ) -> None:
        """``namespaces``: where the workers of each node label run; None: on this host, whatever their labels."""
        super().__init__(
            model_dir, attention=attention, experts=experts, transport="ucx", timeout_s=timeout_s,
            attention_options=attention_options, **options,
        )  # fmt: skip
        self._namespaces = namespaces
        self._threads = threads
        self._dtypes = {
            "dtype": dtype, "expert_dtype": expert_dtype or dtype, "attention_dtype": attention_dtype,
        }  # fmt: skip
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def pid(self, worker: Worker) -> int:
        """Process id of an engine."""
        return self._processes[worker.member].pid

    def add_attention(self) -> Worker:
        worker = self._launch("attention", len(self.attention), dataclasses.asdict(self._attention_options))
        self.attention.append(worker)
        return worker

    def add_moe(self) -> Worker:
        worker = self._launch("moe", len(self.moe), dataclasses.asdict(self._moe_options))
        self.moe.append(worker)
        return worker

    def _launch(self, role: str, index: int, options: dict[str, Any]) -> Worker:
        member, node = next(self._members), self._nodes(role, index)
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        options |= {
            "model": str(self.model_dir), **self._dtypes, "transport": "ucx", "threads": self._threads,
            "member": member, "device": "cpu", "log_level": "warning",
        }  # fmt: skip
        command = [
            *(self._namespaces.command(node) if self._namespaces else ()),
            sys.executable, "-m", f"janus_{role}.engine_main", "--fd", str(theirs.fileno()),
            "--parent", str(os.getpid()), "--options", json.dumps(options),
        ]  # fmt: skip
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        with theirs:
            self._processes[member] = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={**os.environ, **threads}
            )
        return Worker(worker_id=f"{role}-{member}", member=member, thread=None, sock=ours, node=node)

    def stop(self, worker: Worker) -> None:
        worker.sock.close()
        self.forget(worker)
        process = self._processes.pop(worker.member)
        try:
            process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TimeoutError(f"{worker.worker_id} did not stop within {self._timeout_s:.0f} s") from None
