"""Streams under load while processes of every role are killed, frozen and restarted, and the mesh is scaled.

``make chaos``. ``CHAOS_SECONDS``, ``CHAOS_SEED``, ``CHAOS_STREAMS`` change it; what it did and measured is printed
and kept in ``reports/chaos.json``. ``CHAOS_RUN_DIR`` keeps the mesh's logs, ``CHAOS_MODEL`` is another model than the
tiny one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from chaos_report import Fault, shown, table
from janus_runtime.errors import JanusError
from janus_runtime.shared_folder import shared_folder
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
STREAMS = int(os.environ.get("CHAOS_STREAMS", "50"))
KEPT = os.environ.get("CHAOS_RUN_DIR", "")
MODEL = os.environ.get("CHAOS_MODEL", "")
SETTLE_S = 300.0
STREAM_S = SETTLE_S + (SECONDS if MODEL else 0)
"""A stream ends within this; of a larger model each computes anew, after every loss, what took it seconds."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 900)]


class Chaos:
    """One seeded sequence of faults."""

    def __init__(self, mesh: LocalMesh, seed: int, *, gateway: bool) -> None:
        self.mesh = mesh
        self.rng = random.Random(seed)
        self.roles = [
            "attention",
            "moe",
            "scheduler",
            "autoscaler",
            "redis",
            *(["gateway"] if gateway else []),
        ]
        self.log: list[tuple[float, str]] = []
        self.faults: list[Fault] = []
        self._redis = redis.Redis.from_url(mesh.redis_url, socket_timeout=0.2, socket_connect_timeout=0.2)
        self.scaling: threading.Thread | None = None

    def run(self, seconds: float) -> None:
        """A fault each 1 to 3 s."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act = self.rng.choices((self.kill, self.freeze, self.restart, self.scale), (4, 2, 2, 2))[0]
            act()
            time.sleep(self.rng.uniform(1.0, 3.0))
        if self.scaling is not None:
            self.scaling.join(SETTLE_S)

    def enough(self, without: str) -> bool | None:
        """Whether the ready workers but this one can serve; None: Redis does not say."""
        try:
            raw = self._redis.mget(list(self._redis.scan_iter("*}:lease:*")) or ["none"])
        except redis.RedisError:
            return None
        leases = [json.loads(text) for text in raw if text]
        ready = [x for x in leases if x["state"] == "ready" and x["worker_id"] != without]
        slots = [x["slots"] for x in ready if x["role"] == "moe"]
        experts = max((x["num_experts"] for x in leases), default=0)
        return bool(any(x["role"] == "attention" for x in ready) and slots and sum(slots) >= experts)

    def epochs(self) -> list[float]:
        """When cohorts were published, monotonic, from the schedulers' logs."""
        times = []
        for path in (self.mesh.run_dir / "logs").glob("scheduler-*.log"):
            for found in _EPOCH.finditer(path.read_text(errors="replace")):
                now, monotonic = time.time(), time.monotonic()
                local = time.localtime(now)
                midnight = now - (now % 1) - 3600 * local.tm_hour - 60 * local.tm_min - local.tm_sec
                hours, minutes, seconds = found.group(1).split(":")
                at = midnight + 3600 * int(hours) + 60 * int(minutes) + float(seconds)
                times.append(monotonic - (now - (at if at <= now else at - 86400)))
        return sorted(times)

    def kill(self) -> None:
        self._signal("kill", lambda process: process.kill())

    def restart(self) -> None:
        self._signal("restart", lambda process: process.terminate())

    def freeze(self) -> None:
        pause = self.rng.uniform(0.2, 4.0)

        def act(process: psutil.Process) -> None:
            family = [process, *process.children(recursive=True)]
            engines = [s.engine_pid for s in self.mesh.services if s.pid == process.pid and s.engine_pid]
            family += [psutil.Process(e) for e in engines if psutil.pid_exists(e)]
            for each in family:
                each.send_signal(signal.SIGSTOP)
            threading.Timer(pause, lambda: [_continue(each) for each in family]).start()

        self._signal(f"freeze {pause:.1f} s", act)

    def scale(self) -> None:
        """Beside the faults; one change at a time."""
        if self.scaling is not None and self.scaling.is_alive():
            return
        attention, experts = self.sizes()
        at = time.monotonic()
        self.log.append((at, f"scale {attention} x {experts}"))
        self.faults.append(Fault(at=at, kind="scale", role=""))

        def change() -> None:
            try:
                self.mesh.scale(attention=attention, experts=experts, timeout_s=SETTLE_S)
            except JanusError as error:
                self.log.append((time.monotonic(), f"scale: {error}"))

        self.scaling = threading.Thread(target=change)
        self.scaling.start()

    def sizes(self) -> tuple[int, int]:
        """Attention and MoE workers to scale to."""
        return self.rng.randint(1, 3), self.rng.randint(2, 4)

    def _signal(self, what: str, act: Callable[[psutil.Process], object]) -> None:
        role = self.rng.choice(self.roles)
        if role == "redis":
            if what.startswith("freeze"):
                return
            family = psutil.Process(self.mesh.supervisor_pid).children()
            found = [("redis", p) for p in family if "redis" in p.name()]
        else:
            found = [
                (s.worker_id, psutil.Process(s.pid))
                for s in self.mesh.services
                if s.role == role and psutil.pid_exists(s.pid)
            ]
        if not found:
            return
        name, process = self.rng.choice(found)
        enough = self.enough(name)
        at = time.monotonic()
        try:
            act(process)
        except psutil.Error:
            return
        self.log.append((at, f"{what} {name}"))
        self.faults.append(Fault(at=at, kind=what.split()[0], role=role, name=name, enough=enough))


_EPOCH = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3}) INFO janus\.scheduler: epoch \d+: \d+ attention", re.MULTILINE)


def _continue(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)


def leaked_keys(mesh: LocalMesh) -> list[str]:
    """Keys of workers that are gone; journals expire by themselves."""
    client = redis.Redis.from_url(mesh.redis_url)
    names = {s.worker_id for s in mesh.services}
    leases = [k.decode() for k in client.scan_iter("*lease:*")]
    everlasting = [
        k.decode() for k in client.scan_iter("*") if client.ttl(k) == -1 and b"layout:" not in k and b"{" in k
    ]
    fixed = ("member", "workers", "leader:token", "epoch", "cohort", "layouts", "objective")
    client.close()
    return [k for k in leases if k.rpartition(":")[2] not in names] + [
        k for k in everlasting if k.partition("}:")[2] not in fixed
    ]


@pytest.mark.parametrize("gateway", [False, True], ids=["workers", "gateway-too"])
def test_nothing_is_lost(tiny: Path, gateway: bool) -> None:
    with LocalMesh(
        MODEL or tiny, attention=2, experts=3, slots=4, start_deadline_s=240, kv_tokens=16384,
        env={"JANUS_GATEWAY_RETRY_S": f"{STREAM_S if MODEL else 240:g}"}, run_dir=Path(KEPT) if KEPT else None,
    ) as mesh:  # fmt: skip
        load = Load(
            mesh.grpc, make_requests(STREAMS, seed=SEED), at_once=STREAMS, resume=gateway, timeout_s=STREAM_S
        )
        load.reference()
        chaos = Chaos(mesh, SEED, gateway=gateway)
        with load:
            load.wait_tokens(100)
            chaos.run(SECONDS)
        problems = list(load.problems())
        began = min(s.times[0] for s in load.streams if s.times)
        rows = table(chaos.faults, [s.times for s in load.streams], chaos.epochs())
        report = {
            "seconds": SECONDS, "seed": SEED, "gateway": gateway, "streams": len(load.streams),
            "tokens": load.tokens(), "faults": [f"{at - began:.1f} {what}" for at, what in chaos.log],
            "problems": problems, "waits": rows, "cores": os.cpu_count(), "load": os.getloadavg(),
        }  # fmt: skip
        Path("reports").mkdir(exist_ok=True)
        Path(f"reports/chaos{'-gateway' if gateway else ''}.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report), shown(rows), sep="\n")
        assert not problems, "\n".join(
            [*problems[:10], *(f"{at:.1f} {what}" for at, what in chaos.log), *mesh.said]
        )
        deadline = time.monotonic() + 60
        while (leaked := leaked_keys(mesh)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not leaked
        family = psutil.Process(mesh.supervisor_pid).children(recursive=True)
        shared = shared_folder(mesh.redis_url, "janus")
        assert shared.exists()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not shared.exists()
