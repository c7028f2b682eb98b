"""A mesh that grows and shrinks under load, with real processes: no stream fails, no token changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import redis
from janus_runtime.errors import FailedPrecondition, NotFound
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests
from janus_wire.v1 import attention_pb2, attention_pb2_grpc

pytestmark = [pytest.mark.timeout(480), pytest.mark.slow]


def janus(mesh: LocalMesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "janus_cli", *arguments, "--run-dir", str(mesh.run_dir)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def worker_stats(mesh: LocalMesh) -> dict[str, attention_pb2.AttentionServiceGetStatsResponse]:
    """What the attention workers count."""
    found = {}
    for lease in leases(mesh):
        if lease["role"] == "attention":
            with grpc.insecure_channel(lease["grpc_address"]) as channel:
                stub = attention_pb2_grpc.AttentionServiceStub(channel)
                found[lease["worker_id"]] = stub.GetStats(
                    attention_pb2.AttentionServiceGetStatsRequest(), timeout=10
                )
    return found


def leases(mesh: LocalMesh) -> list[dict[str, Any]]:
    with redis.Redis.from_url(mesh.redis_url) as client:
        return [json.loads(text) for text in client.mget(list(client.scan_iter("*}:lease:*"))) if text]


def names(mesh: LocalMesh, role: str) -> list[str]:
    return sorted(s.worker_id for s in mesh.services if s.role == role)


def test_growing_and_shrinking_under_load(tiny: Path) -> None:
    with LocalMesh(tiny, attention=1, experts=2, slots=4, start_deadline_s=150) as mesh:
        load = Load(mesh.grpc, make_requests(16, seed=1), at_once=12)
        load.reference()
        with load:
            load.wait_tokens(50)
            found = mesh.scale(attention=3, experts=4)
            assert sorted(found["started"]) == ["attention-1", "attention-2", "moe-2", "moe-3"]
            assert found["workers"] == {"attention": 3, "experts": 4}
            assert len(names(mesh, "attention")) == 3 and len(names(mesh, "moe")) == 4
            load.wait_tokens(500)
            gone = [mesh.service(n).pid for n in ("attention-2", "attention-1", "moe-3", "moe-2")]
            done = janus(mesh, "scale", "attention=1", "experts=2", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["workers"] == {"attention": 1, "experts": 2}
            assert "draining attention-2" in done.stderr and "attention-2 has left" in done.stderr
            load.wait_tokens(100)
        assert not list(load.problems())
        assert names(mesh, "attention") == ["attention-0"] and names(mesh, "moe") == ["moe-0", "moe-1"]
        assert not any(psutil.pid_exists(pid) for pid in gone)
        refusals(mesh)


def refusals(mesh: LocalMesh) -> None:
    """What is refused changes nothing."""
    with pytest.raises(FailedPrecondition, match=r"4 expert slots .* 8 experts; allowed: at least 2 MoE"):
        mesh.scale(experts=1)
    with pytest.raises(FailedPrecondition, match="attention-0 is the last attention worker"):
        mesh.drain("attention-0")
    with pytest.raises(NotFound, match="allowed: attention-0, moe-0, moe-1"):
        mesh.drain("moe-9")
    bad = janus(mesh, "scale", "attention=0")
    assert bad.returncode == 1 and "1..1024" in bad.stderr
    assert len(names(mesh, "moe")) == 2


def test_a_drained_worker_hands_its_streams_over_and_shows_it(tiny: Path) -> None:
    with LocalMesh(tiny, attention=2, experts=2, start_deadline_s=150) as mesh:
        load = Load(mesh.grpc, make_requests(8, seed=2, tokens=(150, 300)), at_once=8)
        load.reference()
        with load:
            load.wait_tokens(100)
            assert mesh.drain("attention-0")["drained"] == ["attention-0"]
            load.wait_tokens(100)
            assert mesh.drain("moe-1")["drained"] == ["moe-1"]
            load.wait_tokens(100)
        assert not list(load.problems())
        # A number that is free is used again; the mesh goes on from there.
        assert mesh.scale(attention=2)["started"] == ["attention-0"]
        status = janus(mesh, "status", "--json")
        assert json.loads(status.stdout)["attention"] == ["attention-1", "attention-0"]


def test_the_keys_and_values_of_a_stream_move_with_it(tiny: Path) -> None:
    """Where computing them again would take longer: here a token takes 2 ms at least."""
    with LocalMesh(
        tiny, attention=3, experts=2, start_deadline_s=150, env={"JANUS_EMULATED_TOKEN_US": "2000"}
    ) as mesh:
        load = Load(mesh.grpc, make_requests(12, seed=3, tokens=(200, 300)), at_once=12)
        load.reference()
        with load:
            load.wait_tokens(12 * 60)
            assert mesh.drain("attention-2")["drained"] == ["attention-2"]
            load.wait_tokens(400)
        assert not list(load.problems())
        after = worker_stats(mesh)
        assert set(after) == {"attention-0", "attention-1"}
        moved = {name: stats.kv_moved_tokens for name, stats in after.items()}
        assert sum(moved.values()) >= 4 * 48, moved
