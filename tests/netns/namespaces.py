"""Network namespaces as hosts, each with an address of its own; links are cut in this one, the router between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NET = "10.213.0.0/16"
ROUTER = "10.213.0.1"
"""The test's own address, which every host can reach."""
REDIS_PORT = 7777


def missing() -> str:
    """Why there are no namespaces here; empty when there are."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "iptables", "sysctl"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: iproute2, iptables, procps)"
    probe = f"jn{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace."""

    name: str
    address: str
    gateway: str

    def command(self, *command: str) -> list[str]:
        """What runs ``command`` there."""
        return ["ip", "netns", "exec", self.name, *command]


class Network:
    """``with network(names) as net``; packets are dropped silently, as by a switch that fails."""

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        self._chain = f"JANUS-{prefix}"
        self.hosts = {
            name: Host(f"{prefix}-{name}", f"10.213.{i + 1}.2", f"10.213.{i + 1}.1")
            for i, name in enumerate(names)
        }

    def up(self) -> None:
        _run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run("ip", "addr", "add", f"{ROUTER}/32", "dev", "lo")
        _run("iptables", "-N", self._chain)
        # The forwarding of a machine with Docker is closed otherwise.
        _run("iptables", "-A", self._chain, "-s", _NET, "-d", _NET, "-j", "ACCEPT")
        for chain in ("FORWARD", "INPUT", "OUTPUT"):
            _run("iptables", "-I", chain, "-j", self._chain)
        for i, host in enumerate(self.hosts.values()):
            here, there = f"jv{os.getpid() % 10000}-{i}", "eth0"
            _run("ip", "netns", "add", host.name)
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", host.name)
            _run("ip", "addr", "add", f"{host.gateway}/24", "dev", here)
            _run("ip", "link", "set", here, "up")
            inside = ("ip", "-n", host.name)
            _run(*inside, "addr", "add", f"{host.address}/24", "dev", there)
            _run(*inside, "link", "set", there, "up")
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "route", "add", "default", "via", host.gateway)

    def down(self) -> None:
        with contextlib.suppress(RuntimeError):
            _run("ip", "addr", "del", f"{ROUTER}/32", "dev", "lo")
        for host in self.hosts.values():
            with contextlib.suppress(RuntimeError):
                _run("ip", "netns", "del", host.name)
        for chain in ("FORWARD", "INPUT", "OUTPUT"):
            with contextlib.suppress(RuntimeError):
                _run("iptables", "-D", chain, "-j", self._chain)
        for action in ("-F", "-X"):
            with contextlib.suppress(RuntimeError):
                _run("iptables", action, self._chain)

    @contextlib.contextmanager
    def cut(self, *pairs: tuple[str, str]) -> Iterator[None]:
        """Nothing from the first of each pair reaches the second; ``*`` is everyone, ``redis`` the one at ROUTER."""
        rules = [(*self._match("-s", a), *self._match("-d", b), "-j", "DROP") for a, b in pairs]
        for rule in rules:
            _run("iptables", "-I", self._chain, *rule)
        try:
            yield
        finally:
            for rule in rules:
                _run("iptables", "-D", self._chain, *rule)

    def _match(self, flag: str, name: str) -> list[str]:
        if name == "redis":
            return [flag, ROUTER, "-p", "tcp", f"--{flag[1]}port", str(REDIS_PORT)]
        return [flag, _NET if name == "*" else self.hosts[name].address]


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Hosts of these names, gone afterwards."""
    net = Network(f"jn{os.getpid() % 10000}", names)
    try:
        net.up()
        yield net
    finally:
        net.down()
