"""AutoscalerService over real gRPC and Redis, and as a process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import redis.asyncio as aioredis
from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.loop import Autoscaler
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_autoscaler.service import AutoscalerService
from janus_runtime.channel import connect
from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument, from_rpc_error
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_scaling import PROFILES
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def serving(settings: ServiceSettings, coordination: Coordination) -> AsyncIterator[Any]:
    store = ObjectiveStore(coordination, Objective(tpot_ms=200.0))
    own = AutoscalerSettings(redis_url=settings.redis_url, worker_id="autoscaler-0", mode="off")
    scaler = Autoscaler(own, coordination, store, model=None, hardware=(PROFILES["cpu"], PROFILES["cpu"]))
    async with GrpcServer(settings, "autoscaler") as server:
        servicer = AutoscalerService(scaler, store)
        server.add(
            autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
            servicer,
            "janus.v1.AutoscalerService",
        )
        async with connect(await server.start()) as channel:
            yield autoscaler_pb2_grpc.AutoscalerServiceStub(channel)


async def test_without_a_model_it_observes_and_says_so(
    settings: ServiceSettings, coordination: Coordination
) -> None:
    common: dict[str, Any] = {"member": 0, "pid": 1, "grpc_address": "a:1", "state": WorkerState.READY}
    await coordination.register(
        Lease(worker_id="attention-0", role=Role.ATTENTION, running=4, waiting=2, **common)
    )
    await coordination.register(Lease(worker_id="moe-0", role=Role.MOE, **common))
    await coordination.register(
        Lease(worker_id="moe-1", role=Role.MOE, **{**common, "state": WorkerState.STARTING})
    )
    await coordination.report_stats("attention-0", {"steps": 0, "step_seconds": 0, "generated_tokens": 0})
    await coordination.report_stats("moe-0", {"a_max_sum": 0, "layer_passes": 0})
    await asyncio.sleep(0.2)
    await coordination.report_stats("attention-0", {"steps": 10, "step_seconds": 0.5, "generated_tokens": 40})
    await coordination.report_stats("moe-0", {"a_max_sum": 14, "layer_passes": 4})
    async with serving(settings, coordination) as stub:
        plan = await stub.GetPlan(pb.GetPlanRequest(), timeout=5)
        assert (plan.current_attention, plan.current_moe) == (0, 0), "no cohort"
        assert not plan.HasField("planned_attention") and not plan.HasField("planned_moe")
        assert "without --model" in plan.status and plan.mode == "off"
        assert plan.objective.tpot_ms == 200
        seen = plan.observation
        assert (seen.running, seen.waiting) == (4, 2)
        assert seen.step_ms_mean == pytest.approx(50) and seen.a_max_mean == pytest.approx(3.5)
        assert 20 < seen.output_tokens_per_second < 201
        explain = await stub.Explain(pb.ExplainRequest(), timeout=5)
        assert not explain.candidates and explain.status == plan.status


async def test_an_empty_mesh_is_all_zeros(settings: ServiceSettings, coordination: Coordination) -> None:
    async with serving(settings, coordination) as stub:
        plan = await stub.GetPlan(pb.GetPlanRequest(), timeout=5)
        assert plan.observation == pb.Observation() and plan.current_moe == 0


async def test_objective_is_kept_in_redis(settings: ServiceSettings, coordination: Coordination) -> None:
    async with serving(settings, coordination) as stub:
        asked = pb.Objective(tpot_ms=75.5, ttft_ms=900, min_attention=2, max_moe=9)
        answer = await stub.SetObjective(pb.SetObjectiveRequest(objective=asked), timeout=5)
        expected = pb.Objective(
            tpot_ms=75.5, ttft_ms=900, min_attention=2, max_attention=64, min_moe=1, max_moe=9
        )
        assert answer.objective == expected
    async with serving(settings, coordination) as stub:  # another process, later
        assert (await stub.GetPlan(pb.GetPlanRequest(), timeout=5)).objective == expected


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        (None, "objective"),
        (pb.Objective(), "objective.tpot_ms"),
        (pb.Objective(tpot_ms=-1), "objective.tpot_ms"),
        (pb.Objective(tpot_ms=math.nan), "objective.tpot_ms"),
        (pb.Objective(tpot_ms=math.inf), "objective.tpot_ms"),
        (pb.Objective(tpot_ms=50, ttft_ms=-1), "objective.ttft_ms"),
        (pb.Objective(tpot_ms=50, ttft_ms=math.nan), "objective.ttft_ms"),
        (pb.Objective(tpot_ms=50, min_moe=5000), "objective.min_moe"),
        (pb.Objective(tpot_ms=50, max_attention=4294967295), "objective.max_attention"),
        (pb.Objective(tpot_ms=50, min_moe=5, max_moe=4), "objective.max_moe"),
    ],
)
async def test_bad_objectives_are_refused_by_name(
    settings: ServiceSettings, coordination: Coordination, objective: pb.Objective | None, field: str
) -> None:
    async with serving(settings, coordination) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            await stub.SetObjective(pb.SetObjectiveRequest(objective=objective), timeout=5)
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidArgument) and error.field == field
        assert (await stub.GetPlan(pb.GetPlanRequest(), timeout=5)).objective.tpot_ms == 200


@pytest.mark.parametrize("garbage", [b"\xff", b"3", b"{}", b'{"tpot_ms": "x"}', b"null"])
async def test_garbage_in_redis_is_the_default(
    settings: ServiceSettings, coordination: Coordination, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = aioredis.Redis.from_url(settings.redis_url, protocol=2)
    await client.set("{janus}:objective", garbage)
    async with serving(settings, coordination) as stub:
        assert (await stub.GetPlan(pb.GetPlanRequest(), timeout=5)).objective.tpot_ms == 200
    assert "cannot be read" in caplog.text
    await client.aclose()


async def test_process_registers_serves_and_leaves(redis: RedisServer, coordination: Coordination) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JANUS_", "OTEL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "janus_autoscaler", "--worker-id", "autoscaler-0", "--tpot-ms", "90"],
        env={**environment, "REDIS_URL": redis.url}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(15):
            while not (leases := await coordination.workers("autoscaler")):
                await asyncio.sleep(0.05)
        assert leases[0].pid == process.pid and "without --model" in leases[0].detail
        async with connect(leases[0].grpc_address) as channel:
            stub = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
            assert (await stub.GetPlan(pb.GetPlanRequest(), timeout=5)).objective.tpot_ms == 90
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert await coordination.workers() == []
