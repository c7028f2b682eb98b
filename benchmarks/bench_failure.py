"""How long streams wait when one process dies: kill -9 of each role in a mesh under load, from kill to next token.

``python benchmarks/bench_failure.py [--rounds 3] [--streams 8]``; a tiny random model, so that the times are those
of noticing and going on, not of computing. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import psutil
from janus_bench.machine import machine
from janus_models.tiny import make_tiny
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests

ROLES = ("attention", "moe", "scheduler", "redis", "gateway")


def kill(mesh: LocalMesh, role: str) -> None:
    """kill -9 of the last worker of the role, its engine with it."""
    if role == "redis":
        next(p for p in psutil.Process(mesh.supervisor_pid).children() if "redis" in p.name()).kill()
    else:
        mesh.kill(max(s.worker_id for s in mesh.services if s.role == role))


def whole(mesh: LocalMesh, since: set[int]) -> None:
    """Until what was killed is back, and a moment longer."""
    deadline = time.monotonic() + 90
    while {s.pid for s in mesh.services} == since and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny(Path(folder) / "tiny", family="qwen3_moe", seed=11)
        with LocalMesh(model, attention=2, experts=3, slots=4) as mesh:
            requests = make_requests(options.streams, seed=1, tokens=(300, 600))
            load = Load(mesh.grpc, requests, at_once=options.streams, resume=True)
            load.reference()
            with load:
                for role in ROLES:
                    at = []
                    for _ in range(options.rounds):
                        load.wait_tokens(100)
                        pids = {s.pid for s in mesh.services}
                        at.append(time.monotonic())
                        kill(mesh, role)
                        load.wait_tokens(50, 120)
                        if role == "redis":
                            time.sleep(3.0)
                        else:
                            whole(mesh, pids)
                    found[role] = at
            problems = list(load.problems())
            results = {role: dataclasses.asdict(load.recovery(at)) for role, at in found.items()}
    print(
        json.dumps({"machine": machine(), "seconds_to_next_token": results, "problems": problems}, indent=1)
    )


if __name__ == "__main__":
    main()
