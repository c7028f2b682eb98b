"""Workers on hosts of their own (network namespaces) over tcp, and the network between them failing: root only.

``make test-netns``. No supervisor: what is noticed is noticed by streams, leases and waits. Every stream equals an
undisturbed run of it, token for token.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import namespaces as netns
import psutil
import pytest
import redis
from janus_models.tiny import make_tiny
from janus_runtime.records import CohortRecord, Lease
from janus_runtime.redis_server import find_redis_binary
from janus_testing.load import Load, make_requests

MISSING = netns.missing()
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(bool(MISSING), reason=MISSING or "it is there"),
]  # fmt: skip
WORKERS = ("attention-0", "attention-1", "moe-0", "moe-1", "moe-2")
TTL_S = 3.0


@dataclass
class Mesh:
    net: netns.Network
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    grpc: str = ""
    client: Any = None

    def start(self, name: str, command: list[str], host: netns.Host | None = None) -> None:
        environment = {
            **os.environ,
            "UCX_TLS": "tcp",
            "UCX_NET_DEVICES": "eth0",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                command if host is None else host.command(*command), stdout=log, stderr=log, env=environment,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def service(self, name: str, *flags: str) -> None:
        role = name.partition("-")[0]
        host = self.net.hosts.get(name)
        common = [
            sys.executable, "-m", f"janus_{role}", "--worker-id", name, "--redis-url", f"redis://{netns.ROUTER}:{netns.REDIS_PORT}/0",
            "--lease-ttl-s", str(TTL_S), "--trace-dir", str(self.folder),
            "--host", netns.ROUTER if host is None else host.address,
        ]  # fmt: skip
        self.start(name, [*common, *flags], host)

    def leases(self) -> dict[str, Lease]:
        keys = list(self.client.scan_iter("{janus}:lease:*"))
        found = [Lease.from_json(v) for v in (self.client.mget(keys) if keys else []) if v]
        return {lease.worker_id: lease for lease in found}

    def cohort(self) -> CohortRecord:
        raw = self.client.get("{janus}:cohort")
        assert raw is not None
        return CohortRecord.from_json(raw)

    def members(self) -> set[str]:
        cohort = self.cohort()
        return {m.worker_id for m in (*cohort.attention, *cohort.moe)}

    def until(self, true: Callable[[], object], seconds: float, what: str) -> float:
        began = time.monotonic()
        while True:
            with contextlib.suppress(AssertionError, redis.RedisError):
                if true():
                    return time.monotonic() - began
            assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("netns")
    model = make_tiny(folder / "tiny", family="qwen3_moe", seed=11)
    with netns.network(WORKERS) as net:
        mesh = Mesh(net, folder)
        try:
            mesh.start("redis", [
                str(find_redis_binary()), "--bind", netns.ROUTER, "--port", str(netns.REDIS_PORT),
                "--protected-mode", "no", "--save", "", "--dir", str(folder),
            ])  # fmt: skip
            mesh.client = redis.Redis(netns.ROUTER, netns.REDIS_PORT, socket_timeout=5)
            mesh.service("scheduler-0", "--min-attention", "2", "--min-experts", "3")
            for name in WORKERS:
                mesh.service(
                    name,
                    "--model",
                    str(model),
                    "--threads",
                    "1",
                    *(["--slots", "4"] if "moe" in name else []),
                )
            mesh.service("gateway-0", "--model", str(model), "--retry-s", "120")
            mesh.until(
                lambda: len(mesh.members()) == 5 and "gateway-0" in mesh.leases(), 180, "the first cohort"
            )
            mesh.grpc = mesh.leases()["gateway-0"].grpc_address
            yield mesh
        finally:
            mesh.stop()


@pytest.fixture
def load(mesh: Mesh) -> Iterator[Load]:
    mesh.until(lambda: mesh.members() == set(WORKERS), 120, "all workers in the cohort")
    load = Load(mesh.grpc, make_requests(8, seed=3, tokens=(100, 250)), at_once=8, timeout_s=200)
    load.reference()
    with load:
        load.wait_tokens(50)
        yield load
    assert not list(load.problems()), mesh.logs()


def pause(mesh: Mesh, load: Load, without: str, seconds: float) -> float:
    """Seconds until the cohort is without a worker and tokens come again."""
    began = time.monotonic()
    mesh.until(lambda: without not in mesh.members(), seconds, f"a cohort without {without}")
    load.wait_tokens(100, 60)
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["moe-1", "attention-1"])
def test_a_host_that_is_cut_off_and_comes_back(mesh: Mesh, load: Load, name: str) -> None:
    with mesh.net.cut((name, "*"), ("*", name)):
        print(f"{name} cut off: {pause(mesh, load, name, 4 * TTL_S):.1f} s")
    healed = mesh.until(lambda: name in mesh.members(), 60, f"{name} to come back")
    print(f"{name} back after {healed:.1f} s")
    load.wait_tokens(100)


@pytest.mark.parametrize("cut", [("moe-1", "attention-0"), ("attention-1", "moe-0")])
def test_an_asymmetric_cut_between_two_live_workers(mesh: Mesh, load: Load, cut: tuple[str, str]) -> None:
    """Both have their leases; each waits for the other, and one is left out."""
    out = next(name for name in cut if name.startswith("moe"))
    with mesh.net.cut(cut):
        print(f"{cut[0]} -x-> {cut[1]}: {pause(mesh, load, out, 60):.1f} s")
        assert set(cut) <= set(mesh.leases())
    mesh.until(lambda: out in mesh.members(), 240, f"{out} to be tried again")
    load.wait_tokens(100)


@pytest.mark.parametrize("name", ["moe-2", "attention-1"])
def test_cut_from_redis_but_not_from_peers(mesh: Mesh, load: Load, name: str) -> None:
    with mesh.net.cut((name, "redis"), ("redis", name)):
        print(f"{name} cut from Redis: {pause(mesh, load, name, 4 * TTL_S):.1f} s")
    mesh.until(lambda: name in mesh.members(), 60, f"{name} to come back")
    load.wait_tokens(100)


def test_cut_from_peers_but_not_from_redis(mesh: Mesh, load: Load) -> None:
    pairs = [(a, b) for peer in ("attention-0", "attention-1") for a, b in ((peer, "moe-2"), ("moe-2", peer))]
    with mesh.net.cut(*pairs):
        print(f"moe-2 cut from its peers: {pause(mesh, load, 'moe-2', 60):.1f} s")
        assert "moe-2" in mesh.leases()
    mesh.until(lambda: "moe-2" in mesh.members(), 240, "moe-2 to be tried again")


def test_a_killed_worker_is_noticed_without_a_supervisor(mesh: Mesh, load: Load) -> None:
    lease = mesh.leases()["moe-1"]
    os.kill(lease.pid, signal.SIGKILL)
    seconds = pause(mesh, load, "moe-1", 2.0)
    print(f"moe-1 killed: {seconds:.2f} s")
    assert "moe-1" in (mesh.folder / "scheduler-0.log").read_text()
    mesh.processes.pop("moe-1").wait()
    model = str(mesh.folder / "tiny")
    mesh.service("moe-1", "--model", model, "--threads", "1", "--slots", "4")
    mesh.until(lambda: mesh.members() == set(WORKERS), 60, "moe-1 to be back")


def test_a_straggler_is_waited_for(mesh: Mesh, load: Load) -> None:
    """Slow is not dead: nobody is left out for it, and tokens keep coming."""
    before = mesh.cohort().epoch
    engine = psutil.Process(mesh.leases()["moe-0"].engine_pid)
    for _ in range(20):
        engine.suspend()
        time.sleep(0.3)
        engine.resume()
        time.sleep(0.02)
    load.wait_tokens(20)
    assert mesh.cohort().epoch == before
