"""Routing statistics from real engines to the scheduler, and its answer to Rebalance, over real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from janus_client import JanusClient
from janus_testing import LocalMesh
from janus_wire.v1 import scheduler_pb2 as pb
from janus_wire.v1 import scheduler_pb2_grpc

pytestmark = pytest.mark.timeout(300)
PROMPTS = [[5, 9, 17, 33, 4, 8], [7, 7, 3, 90, 41], [60, 2, 31]]


def generate(mesh: LocalMesh) -> list[list[int]]:
    with JanusClient(mesh.grpc) as client:
        return [
            [
                token
                for chunk in client.generate(p, max_tokens=60, temperature=0.0, ignore_eos=True)
                for token in chunk.token_ids
            ]
            for p in PROMPTS
        ]


def cli(mesh: LocalMesh, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "janus_cli", "layout", "--run-dir", str(mesh.run_dir), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rebalance_knows_the_routing_and_changes_no_token(tiny: Path, tmp_path: Path) -> None:
    env = {"JANUS_SCHEDULER_REBALANCE_S": "0"}
    with LocalMesh(tiny, attention=1, experts=2, slots=4, start_deadline_s=150, env=env) as mesh:
        before = generate(mesh)
        address = next(s.address for s in mesh.services if s.role == "scheduler")
        with grpc.insecure_channel(address) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            deadline = time.monotonic() + 30
            answer = stub.Rebalance(pb.RebalanceRequest(dry_run=True), timeout=30)
            while len(answer.layers) < 3 and time.monotonic() < deadline:
                time.sleep(0.5)
                generate(mesh)
                answer = stub.Rebalance(pb.RebalanceRequest(dry_run=True), timeout=30)
            assert [v.layer for v in answer.layers] == [0, 1, 2], answer.reason
            assert not answer.changed
            for verdict in answer.layers:
                assert 1.0 <= verdict.lower_bound <= verdict.a_max_before <= 2.0
            done = stub.Rebalance(pb.RebalanceRequest(), timeout=60)
            assert done.changed == (done.replicas_loaded > 0)
            layout = stub.GetLayout(pb.GetLayoutRequest(), timeout=10).layout
            assert layout.version == done.layout_version
        shown = cli(mesh, "--json")
        assert shown["version"] == layout.version and shown["workers"] == ["moe-0", "moe-1"]
        assert set(shown["a_max"]) == {"0", "1", "2"}
        turned = {"layers": [[rows[1], rows[0]] for rows in shown["layers"]]}
        (tmp_path / "turned.json").write_text(json.dumps(turned))
        asked = cli(mesh, "--apply", str(tmp_path / "turned.json"), "--json")["rebalance"]
        assert asked["changed"] and [v["proposed"] for v in asked["layers"]] == turned["layers"]
        assert cli(mesh, "--json")["layers"] == turned["layers"]
        assert generate(mesh) == before
