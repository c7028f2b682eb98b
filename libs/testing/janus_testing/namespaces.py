"""Nodes on one machine: network and IPC namespaces behind a bridge. Needs root.

Inside a node UCX finds shared memory; between nodes, tcp over a pair of virtual interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_START_S = 10.0


class NamespaceError(Exception):
    """A namespace could not be made or entered; says which command failed."""


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_START_S)
    if done.returncode:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}; it needs root")


class Nodes:
    """Namespaces by label, gone with the context."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(dict.fromkeys(labels))
        self._anchors: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            hub = self._anchor("", "--net")
            _run("nsenter", "-t", hub, "--net", "ip", "link", "add", "hub", "type", "bridge")
            _run("nsenter", "-t", hub, "--net", "ip", "link", "set", "hub", "up")
            for i, label in enumerate(self.labels):
                node = self._anchor(label, "--net", "--ipc")
                _run(
                    "ip",
                    "link",
                    "add",
                    f"n{i}",
                    "netns",
                    hub,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    node,
                )
                _run("nsenter", "-t", hub, "--net", "ip", "link", "set", f"n{i}", "master", "hub", "up")
                inside = ("nsenter", "-t", node, "--net", "ip")
                _run(*inside, "addr", "add", f"10.77.{i // 250}.{i % 250 + 1}/16", "dev", "eth0")
                for device in ("eth0", "lo"):
                    _run(*inside, "link", "set", device, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _anchor(self, label: str, *kinds: str) -> str:
        """Process id of what holds a namespace."""
        process = self._anchors[label] = subprocess.Popen(["unshare", *kinds, "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        until = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/net") != own:
                    return str(process.pid)
            if process.poll() is not None or time.monotonic() > until:
                raise NamespaceError("unshare did not make a namespace; it needs root")
            time.sleep(0.01)

    def pid(self, label: str) -> int:
        """Process that a node's workers share their namespaces with."""
        return self._anchors[label].pid

    def command(self, label: str) -> list[str]:
        """What to put before a command that shall run on a node."""
        return ["nsenter", "-t", str(self.pid(label)), "--net", "--ipc", "--"]

    def close(self) -> None:
        """End the namespaces; whoever still runs in one keeps it."""
        for process in self._anchors.values():
            process.kill()
            process.wait()
        self._anchors.clear()


def enter(pid: int) -> None:
    """Move this process, which must have one thread, into the namespaces of another. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, flag in (("ipc", _CLONE_NEWIPC), ("net", _CLONE_NEWNET)):
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        try:
            if libc.setns(fd, flag):
                raise OSError(ctypes.get_errno(), f"setns to the {kind} namespace of {pid}")
        finally:
            os.close(fd)
