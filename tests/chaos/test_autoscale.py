"""The autoscaler acting on a real mesh: up under load, back to the floor, and no stream lost or changed.

Each worker waits out what a device of its own would take, since here all share the cores;
benchmarks/bench_autoscaler.py is the long version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from janus_models.tiny import make_tiny
from janus_testing import LocalMesh
from janus_testing.load import make_requests
from janus_testing.open_load import OpenLoad, WorkerCount, poisson
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc

ENV = {
    "JANUS_MOE_EMULATED_EXPERT_US": "6000", "JANUS_ATTENTION_EMULATED_TOKEN_US": "2000",
    "JANUS_AUTOSCALER_INTERVAL_S": "5", "JANUS_AUTOSCALER_WINDOW_S": "10", "JANUS_AUTOSCALER_HOLD_S": "10",
    "JANUS_AUTOSCALER_SHARED_CORES": "0", "JANUS_AUTOSCALER_MAX_WORKERS": "3", "JANUS_SCHEDULER_REBALANCE_S": "0",
    "JANUS_LEASE_TTL_S": "15",
}  # fmt: skip


def ask(mesh: LocalMesh, method: str, request: Any) -> Any:
    with grpc.insecure_channel(mesh.service("autoscaler-0").address) as channel:
        return getattr(autoscaler_pb2_grpc.AutoscalerServiceStub(channel), method)(request, timeout=20)


def janus(mesh: LocalMesh, *flags: str) -> str:
    """What ``janus autoscale`` prints."""
    command = [sys.executable, "-m", "janus_cli", "autoscale", "--run-dir", str(mesh.run_dir), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(mesh: LocalMesh, what: str, seconds: float, done: Any) -> Any:
    deadline = time.monotonic() + seconds
    while not done(stats := ask(mesh, "GetStats", pb.AutoscalerServiceGetStatsRequest())):
        assert time.monotonic() < deadline, f"{what}: {stats}\n{mesh.log('autoscaler-0')}"
        time.sleep(1.0)
    return stats


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_up_under_load_and_back_to_the_floor_without_losing_a_stream(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", family="qwen3_moe", seed=11, num_experts=32)
    with (
        LocalMesh(model, autoscale="act", tpot_ms=250.0, env=ENV, start_deadline_s=150) as mesh,
        WorkerCount(mesh.supervisor_pid) as count,
    ):
        load = OpenLoad(mesh.grpc, make_requests(8, seed=4, tokens=(20, 30)), timeout_s=300)
        load.reference()
        load.arrivals = poisson([(60.0, 2.0)], seed=4)
        with load:
            grown = wait_for(mesh, "growth", 90, lambda s: s.attention + s.moe > 2)
            assert grown.model_error_ratio > 0 and grown.demand_tokens_per_second > 0
            explained = ask(mesh, "Explain", pb.ExplainRequest())
            assert len(explained.candidates) == 9 and sum(c.chosen for c in explained.candidates) == 1
        shown = janus(mesh, "--explain", "3")
        assert "objective  TPOT p95 250 ms" in shown and "chosen" in shown and "target" in shown
        changed = json.loads(janus(mesh, "--tpot-ms", "240", "--json"))
        assert changed["plan"]["objective"] == {
            "tpot_ms": 240.0, "min_attention": 1, "max_attention": 3, "min_moe": 1, "max_moe": 3
        }  # fmt: skip
        assert not list(load.problems()), list(load.problems())[:5]
        wait_for(mesh, "the floor", 150, lambda s: (s.attention, s.moe) == (1, 1))
        plan = ask(mesh, "GetPlan", pb.GetPlanRequest())
        assert "nothing is asked" in plan.status and (plan.target_attention, plan.target_moe) == (1, 1)
        assert max(a + e for _, a, e in count.rows) > 2
        again = OpenLoad(mesh.grpc, make_requests(8, seed=4, tokens=(20, 30)), timeout_s=300)
        again.expected, again.arrivals = load.expected, [0.0, 0.1]
        with again:
            pass
        assert not list(again.problems())
