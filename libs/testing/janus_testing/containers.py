"""Nodes on one machine: containers of a real engine, behind the bridge of a network of their own.

As namespaces.Nodes, with the engine's own network instead of ours: inside a node UCX finds shared memory, between nodes
tcp over what the engine puts there. Workers join a container's network and IPC namespaces; their files are the host's.
"""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_CALL_S = 60.0


class ContainerError(Exception):
    """The engine refused something; says which command failed."""


def _docker(*words: str) -> str:
    try:
        done = subprocess.run(
            ("docker", *words), check=False, capture_output=True, text=True, timeout=_CALL_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ContainerError(f"docker {words[0]}: {error}; is an engine running?") from error
    if done.returncode:
        raise ContainerError(f"docker {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


class Containers:
    """A container for each label, gone with the context. Joining them needs root."""

    def __init__(self, labels: Sequence[str], image: str = "busybox") -> None:
        """``image``: anything that has ``sleep``."""
        self.labels = tuple(dict.fromkeys(labels))
        self._image = image
        self._name = f"janus-nodes-{uuid.uuid4().hex[:8]}"
        self._made: list[str] = []
        self._pids: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            _docker("network", "create", "--internal", self._name)
            for i, label in enumerate(self.labels):
                name = f"{self._name}-{i}"
                self._made.append(name)
                _docker(
                    "run", "--detach", "--init", "--name", name, "--network", self._name, "--ipc", "private",
                    self._image, "sleep", "86400",
                )  # fmt: skip
                self._pids[label] = int(_docker("inspect", "--format", "{{.State.Pid}}", name))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pid(self, label: str) -> int:
        """Process that a node's workers share their namespaces with."""
        return self._pids[label]

    def command(self, label: str) -> list[str]:
        """What to put before a command that shall run on a node."""
        return ["nsenter", "-t", str(self.pid(label)), "--net", "--ipc", "--"]

    def close(self) -> None:
        """Remove the containers and their network; whoever still runs in one keeps its namespaces."""
        if self._made:
            with contextlib.suppress(ContainerError):
                _docker("rm", "--force", "--volumes", *self._made)
        self._made.clear()
        with contextlib.suppress(ContainerError):
            _docker("network", "rm", self._name)


__all__ = ["ContainerError", "Containers"]
