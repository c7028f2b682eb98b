"""What a killed attention worker had computed is found by who goes on, and nothing of it stays in memory for ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import psutil
import pytest
from janus_runtime import shared_folder
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests
from janus_wire.v1 import attention_pb2, attention_pb2_grpc

pytestmark = pytest.mark.timeout(300)


def stats(mesh: LocalMesh, worker_id: str) -> attention_pb2.AttentionServiceGetStatsResponse:
    with grpc.insecure_channel(mesh.service(worker_id).address) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        return stub.GetStats(attention_pb2.AttentionServiceGetStatsRequest(), timeout=10)


def folder_of(mesh: LocalMesh) -> Path:
    return shared_folder.shared_folder(mesh.redis_url, "janus")


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "switched off"])
def test_streams_of_a_killed_worker_are_not_computed_again(tiny: Path, kept: bool) -> None:
    env = {} if kept else {"JANUS_ATTENTION_KV_SHELF_MB": "0"}
    with LocalMesh(tiny, attention=2, experts=2, start_deadline_s=150, env=env) as mesh:
        load = Load(mesh.grpc, make_requests(8, seed=1, tokens=(150, 300)), at_once=8)
        load.reference()
        folder = folder_of(mesh)
        assert len(shared_folder.names(folder)) == (2 if kept else 0)
        before = stats(mesh, "attention-1")
        with load:
            load.wait_tokens(400)
            old = mesh.kill("attention-0")
            load.wait_tokens(400)
            mesh.wait_restarted("attention-0", old)
        assert not list(load.problems())
        # Who is started again may have some of its streams back, by its own counters, which begin anew.
        after = [stats(mesh, name) for name in ("attention-0", "attention-1")]
        recovered = sum(each.kv_recovered_tokens for each in after) - before.kv_recovered_tokens
        assert [s for s in load.streams if s.tokens]
        if kept:
            # Four streams of 50 tokens and more each.
            assert recovered > 100
            assert sum(each.kv_kept_tokens for each in after) > recovered
            assert after[1].kv_shelf_seconds > 0
        else:
            assert recovered == sum(each.kv_kept_tokens for each in after) == 0
    assert not folder.exists()


def test_what_a_killed_mesh_leaves_goes_when_the_next_one_looks(tiny: Path) -> None:
    mesh = LocalMesh(tiny, attention=1, experts=1, start_deadline_s=150).start()
    folder = folder_of(mesh)
    try:
        family = psutil.Process(mesh.supervisor_pid).children(recursive=True)
        assert len(shared_folder.names(folder)) == 1
        Load(
            mesh.grpc, make_requests(1, seed=1), at_once=1
        ).reference()  # engines that had nothing take theirs along
        os.kill(mesh.supervisor_pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
    finally:
        mesh.stop()
    assert len(shared_folder.names(folder)) == 1, "nobody was left to remove it"
    shared_folder.tidy(dead_s=0.2)
    time.sleep(0.3)
    shared_folder.tidy(dead_s=0.2)
    assert not folder.exists()
