"""The chaos of test_chaos.py on three nodes, whose leaders are killed on purpose.

``make chaos-nodes``; the same variables. A node's leader is the first of its workers in rank order: the others'
rows and sums go through it, so that its death is noticed by workers that talk to nobody else.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from chaos_report import Fault, shown, table
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests
from test_chaos import KEPT, SECONDS, SEED, SETTLE_S, STREAMS, Chaos, leaked_keys

NODES = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 900)]


class NodeChaos(Chaos):
    """Half of all faults hit a leader of the cohort in force."""

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            acts = (self.kill_leader, self.kill, self.freeze, self.restart, self.scale)
            self.rng.choices(acts, (6, 1, 2, 2, 1))[0]()
            time.sleep(self.rng.uniform(1.0, 3.0))
        if self.scaling is not None:
            self.scaling.join(SETTLE_S)

    def leaders(self) -> dict[str, list[str]]:
        """First worker of each node by role, of nodes with others to lead; empty without a cohort or Redis."""
        try:
            keys = list(self._redis.scan_iter("*}:cohort"))
            record: dict[str, Any] = json.loads(self._redis.get(keys[0]) or "{}") if keys else {}
        except redis.RedisError:
            return {}
        found: dict[str, list[str]] = {}
        for role in ("attention", "moe"):
            nodes: dict[str, list[str]] = {}
            for worker in record.get(role, ()):
                nodes.setdefault(worker["node"], []).append(worker["worker_id"])
            found[role] = [names[0] for names in nodes.values() if len(names) > 1]
        return found

    def kill_leader(self) -> None:
        role = self.rng.choice(("attention", "moe"))
        names = self.leaders().get(role)
        if not names:
            return
        name = self.rng.choice(names)
        found = [s.pid for s in self.mesh.services if s.worker_id == name and psutil.pid_exists(s.pid)]
        if not found:
            return
        enough, at = self.enough(name), time.monotonic()
        try:
            psutil.Process(found[0]).kill()
        except psutil.Error:
            return
        self.log.append((at, f"kill leader {name}"))
        self.faults.append(Fault(at=at, kind="kill", role=role, name=name, enough=enough))

    def sizes(self) -> tuple[int, int]:
        return self.rng.randint(3, 4), self.rng.randint(4, 5)


@pytest.mark.parametrize("exchange", ["2pc-1", "2pc-2", "auto"])
def test_nothing_is_lost_with_the_leaders(tiny: Path, exchange: str) -> None:
    with LocalMesh(
        tiny, attention=4, experts=5, nodes=NODES, slots=4, start_deadline_s=300, kv_tokens=16384,
        exchange=exchange, env={"JANUS_GATEWAY_RETRY_S": "240"}, run_dir=Path(KEPT) / exchange if KEPT else None,
    ) as mesh:  # fmt: skip
        load = Load(mesh.grpc, make_requests(STREAMS, seed=SEED), at_once=STREAMS, timeout_s=SETTLE_S)
        load.reference()
        chaos = NodeChaos(mesh, SEED, gateway=False)
        labels = [label for names in chaos.leaders().values() for label in names]
        assert labels, "no node has anyone to lead"
        with load:
            load.wait_tokens(100)
            chaos.run(SECONDS)
        problems = list(load.problems())
        began = load.streams[0].times[0]
        rows = table(chaos.faults, [s.times for s in load.streams], chaos.epochs())
        leaders = sum(what.startswith("kill leader") for _, what in chaos.log)
        report = {
            "seconds": SECONDS, "seed": SEED, "exchange": exchange, "nodes": NODES, "streams": len(load.streams),
            "tokens": load.tokens(), "leaders_killed": leaders,
            "faults": [f"{at - began:.1f} {what}" for at, what in chaos.log],
            "problems": problems, "waits": rows, "cores": os.cpu_count(), "load": os.getloadavg(),
        }  # fmt: skip
        Path("reports").mkdir(exist_ok=True)
        Path(f"reports/chaos-nodes-{exchange}.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report), shown(rows), sep="\n")
        assert not problems, "\n".join(
            [*problems[:10], *(f"{at:.1f} {what}" for at, what in chaos.log), *mesh.said]
        )
        assert leaders, "no leader was killed"
        deadline = time.monotonic() + 60
        while (leaked := leaked_keys(mesh)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not leaked
        family = psutil.Process(mesh.supervisor_pid).children(recursive=True)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
