"""The supervisor with real processes and fake services: start, death, restart, signals, and what is left: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

SCRIPT = Path(__file__).with_name("fake_mesh.py")
WAIT_S = 20.0


class Mesh:
    """``fake_mesh.py`` as a child process."""

    def __init__(self, run_dir: Path, **options: Any) -> None:
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(run_dir), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()[2]
        mesh: dict[str, Any] = json.loads(line)
        return mesh

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err

    def file(self) -> dict[str, Any]:
        mesh: dict[str, Any] = json.loads((self.run_dir / "mesh.json").read_text())
        return mesh

    def pid(self, worker_id: str) -> int:
        return next(int(s["pid"]) for s in self.file()["services"] if s["worker_id"] == worker_id)

    def engines(self) -> list[int]:
        logs = "\n".join(path.read_text() for path in (self.run_dir / "logs").glob("*.log"))
        return [int(pid) for pid in re.findall(r"^engine (\d+)$", logs, re.MULTILINE)]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    meshes: list[Mesh] = []

    def make(**options: Any) -> Mesh:
        meshes.append(Mesh(tmp_path / "run", **options))
        return meshes[-1]

    yield make
    for mesh in meshes:
        if mesh.process.poll() is None:
            mesh.process.kill()
        mesh.process.communicate()


def is_redis(process: psutil.Process) -> bool:
    try:
        return "redis" in process.name()
    except psutil.NoSuchProcess:  # reaped since it was listed
        return False


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(what: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def assert_nothing_left(mesh: Mesh, family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=WAIT_S)
    assert not alive
    wait_until(lambda: not any(runs(pid) for pid in mesh.engines()), 5.0)
    assert not list(mesh.run_dir.rglob("*.sock"))
    assert not (mesh.run_dir / "mesh.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_starts_whole_and_leaves_nothing_behind(start: Callable[..., Mesh], number: signal.Signals) -> None:
    mesh = start(attention=2, experts=2)
    said = mesh.ready()
    roles = sorted((s["role"], s["index"]) for s in said["services"])
    assert roles == [
        ("attention", 0), ("attention", 1), ("autoscaler", 0), ("gateway", 0), ("moe", 0), ("moe", 1),
        ("scheduler", 0),
    ]  # fmt: skip
    assert said["http"] and said["grpc"] and said["redis"].startswith("unix://")
    family = mesh.family()
    assert {s["pid"] for s in said["services"]} <= {p.pid for p in family}
    assert all(os.getsid(s["pid"]) == s["pid"] for s in said["services"])
    assert len(mesh.engines()) == 4
    mesh.process.send_signal(number)
    code, _, err = mesh.end()
    assert code == 0, err
    assert_nothing_left(mesh, family)


def test_the_end_of_stdin_ends_it(start: Callable[..., Mesh]) -> None:
    mesh = start(hold_stdin=True)
    mesh.ready()
    family = mesh.family()
    assert mesh.end()[0] == 0  # communicate() closes stdin
    assert_nothing_left(mesh, family)


def test_a_service_that_dies_at_start_up_shows_its_last_lines(start: Callable[..., Mesh]) -> None:
    mesh = start(behaviours={"moe-0": "dies"})
    wait_until(lambda: len(mesh.family()) > 3)
    family = mesh.family()
    code, out, err = mesh.end()
    assert (code, out) == (1, "")
    assert "moe-0 exited with status 3 while starting" in err
    assert "  line 29 of moe-0" in err and "  line 10 of moe-0" in err and "line 9 of moe-0" not in err
    assert_nothing_left(mesh, family)


def test_a_start_that_takes_too_long_says_what_it_waits_for(start: Callable[..., Mesh]) -> None:
    mesh = start(behaviours={"attention-0": "stuck"}, deadline=8.0)
    code, _, err = mesh.end()
    assert code == 1
    assert "not ready after 8 s" in err
    assert re.search(r"still waiting: .*attention-0: checkpoint /nowhere", err)
    assert "moe-0: the first cohort" in err
    assert_nothing_left(mesh, [])


def test_ctrl_c_while_starting(start: Callable[..., Mesh]) -> None:
    mesh = start(behaviours={"attention-0": "stuck"})
    wait_until(lambda: len(mesh.engines()) == 2)
    family = mesh.family()
    mesh.process.send_signal(signal.SIGINT)
    code, out, _ = mesh.end()
    assert (code, out) == (0, "")
    assert_nothing_left(mesh, family)


def test_a_dead_worker_is_started_again_without_its_engine(start: Callable[..., Mesh]) -> None:
    mesh = start(experts=2)
    mesh.ready()
    old = mesh.pid("moe-1")
    engines = set(mesh.engines())
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: mesh.pid("moe-1") != old)
    wait_until(lambda: len(set(mesh.engines()) - engines) == 1)
    wait_until(lambda: sum(runs(pid) for pid in mesh.engines()) == 3)
    family = mesh.family()
    mesh.process.send_signal(signal.SIGINT)
    code, _, err = mesh.end()
    assert code == 0
    assert "moe-1 was ended by SIGKILL; starting it again at once" in err
    assert "moe-1 is ready again" in err
    assert_nothing_left(mesh, family)


def test_a_dead_workers_lease_goes_at_once(start: Callable[..., Mesh]) -> None:
    """Long before it expires, so that the others form a cohort without it."""
    mesh = start(experts=2, behaviours={"moe-1": "long lease"})
    url = mesh.ready()["redis"]
    client = redis.Redis.from_url(url)
    assert client.pttl("{janus}:lease:moe:moe-1") > 100_000
    os.kill(mesh.pid("moe-1"), signal.SIGKILL)
    wait_until(lambda: not client.exists("{janus}:lease:moe:moe-1"))
    client.close()


def test_without_restart_a_dead_worker_ends_the_mesh(start: Callable[..., Mesh]) -> None:
    mesh = start(restart=False)
    mesh.ready()
    os.kill(mesh.pid("attention-0"), signal.SIGKILL)
    family = mesh.family()
    code, _, err = mesh.end()
    assert code == 1
    assert "attention-0 was ended by SIGKILL" in err
    assert_nothing_left(mesh, family)


def test_redis_comes_back_and_the_leases_with_it(start: Callable[..., Mesh]) -> None:
    mesh = start()
    mesh.ready()
    server = next(p for p in mesh.family() if is_redis(p))
    server.kill()
    wait_until(lambda: any(is_redis(p) and p.pid != server.pid for p in mesh.family()))
    old = mesh.pid("moe-0")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: mesh.pid("moe-0") != old)  # says that the new one's lease is in the new Redis
    mesh.process.send_signal(signal.SIGINT)
    code, _, err = mesh.end()
    assert code == 0
    assert "Redis ended; starting it again" in err


def test_children_die_with_a_killed_supervisor(start: Callable[..., Mesh]) -> None:
    mesh = start()
    mesh.ready()
    family = [p for p in mesh.family() if p.pid not in mesh.engines()]
    mesh.process.kill()
    _, alive = psutil.wait_procs(family, timeout=5.0)
    assert not alive
    for pid in mesh.engines():  # the fakes' engines have no parent to die with; Janus's do
        os.kill(pid, signal.SIGKILL)


def test_a_child_that_ignores_sigterm_is_killed(start: Callable[..., Mesh]) -> None:
    mesh = start(behaviours={"moe-0": "deaf"}, stop_deadline=1.0)
    mesh.ready()
    family = mesh.family()
    mesh.process.send_signal(signal.SIGINT)
    assert mesh.end()[0] == 0
    assert_nothing_left(mesh, family)


def test_a_second_ctrl_c_does_not_wait(start: Callable[..., Mesh]) -> None:
    mesh = start(behaviours={"moe-0": "deaf"}, stop_deadline=60.0)
    mesh.ready()
    family = mesh.family()
    mesh.process.send_signal(signal.SIGINT)
    wait_until(lambda: "deaf" in (mesh.run_dir / "logs/moe-0.log").read_text())
    mesh.process.send_signal(signal.SIGINT)
    assert mesh.end()[0] in (1, 130)
    assert_nothing_left(mesh, family)


def test_one_mesh_per_run_directory(start: Callable[..., Mesh]) -> None:
    first = start()
    first.ready()
    code, _, err = start().end()
    assert code == 1
    assert "a mesh runs in" in err and "janus down" in err
    assert first.process.poll() is None
    assert first.file()["pid"] == first.process.pid
    assert all(psutil.pid_exists(s["pid"]) for s in first.file()["services"])
