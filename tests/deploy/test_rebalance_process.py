"""Routing statistics from real engines to the scheduler, and its answer to Rebalance, over real processes."""

from __future__ import annotations

import time
from pathlib import Path

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


def test_rebalance_knows_the_routing_and_changes_no_token(tiny: Path) -> None:
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
        assert generate(mesh) == before
