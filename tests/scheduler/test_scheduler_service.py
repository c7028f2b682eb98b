"""SchedulerService over real gRPC and Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from janus_runtime.channel import connect
from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument, JanusError, NotFound, Unavailable, from_rpc_error
from janus_runtime.records import Lease
from janus_runtime.redis_server import RedisServer
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_scheduler.membership import Rules
from janus_scheduler.publisher import Publisher
from janus_scheduler.rebalancer import Rebalancer
from janus_scheduler.service import SchedulerService
from janus_wire.v1 import common_pb2, scheduler_pb2_grpc
from janus_wire.v1 import scheduler_pb2 as pb

pytestmark = pytest.mark.asyncio
NAME = "janus.v1.SchedulerService"


@contextlib.asynccontextmanager
async def serving(
    settings: ServiceSettings, coordination: Coordination
) -> AsyncIterator[tuple[Publisher, Any]]:
    publisher = Publisher(coordination, "scheduler-0", Rules(), settle_s=0.0, lease_ttl_s=5.0)
    async with GrpcServer(settings, "scheduler") as server:
        rebalancer = Rebalancer(coordination, publisher, settings, every_s=0, horizon_s=300, min_replicas=1)
        servicer = SchedulerService(coordination, publisher, rebalancer)
        server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, servicer, NAME)
        async with connect(await server.start()) as channel:
            yield publisher, scheduler_pb2_grpc.SchedulerServiceStub(channel)


async def failure(call: Any) -> JanusError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_before_the_first_cohort_it_says_what_is_missing(
    settings: ServiceSettings, coordination: Coordination, ready: Callable[..., Lease]
) -> None:
    async with serving(settings, coordination) as (publisher, stub):
        await coordination.register(ready("attention-0"))
        await coordination.register(ready("moe-0"))
        await publisher.round(0.0)
        for call in (
            stub.GetCohort(pb.GetCohortRequest(), timeout=5),
            stub.GetLayout(pb.GetLayoutRequest(), timeout=5),
            stub.Rebalance(pb.RebalanceRequest(), timeout=5),
        ):
            error = await failure(call)
            assert isinstance(error, Unavailable) and error.retry_after_s == 1.0
            assert "waiting for more MoE workers: 4 expert slots per layer" in str(error)


async def test_cohort_layout_and_rebalance(
    settings: ServiceSettings, coordination: Coordination, ready: Callable[..., Lease]
) -> None:
    async with serving(settings, coordination) as (publisher, stub):
        for name in ("attention-0", "moe-0", "moe-1"):
            await coordination.register(ready(name))
        await publisher.round(0.0)
        cohort = (await stub.GetCohort(pb.GetCohortRequest(), timeout=5)).cohort
        assert (cohort.epoch, cohort.layout_version, cohort.model) == (1, 1, "tiny float32")
        assert cohort.gating == common_pb2.GATING_MOE
        assert cohort.scheduling == common_pb2.SCHEDULING_POLICY_OPTIMAL
        assert [w.worker_id for w in cohort.moe] == ["moe-0", "moe-1"]
        assert cohort.moe[1].slots == 4 and cohort.moe[1].state == "ready" and cohort.moe[1].member > 0
        layout = (await stub.GetLayout(pb.GetLayoutRequest(), timeout=5)).layout
        assert layout == (await stub.GetLayout(pb.GetLayoutRequest(version=1), timeout=5)).layout
        assert len(layout.layers) == 2 and list(layout.layers[0].instances[0].experts) == [0, 2, 4, 6]
        error = await failure(stub.GetLayout(pb.GetLayoutRequest(version=7), timeout=5))
        assert isinstance(error, NotFound) and error.field == "version"
        rebalance = await stub.Rebalance(pb.RebalanceRequest(), timeout=5)
        assert not rebalance.changed and rebalance.layout_version == 1
        assert rebalance.reason == "no routing was reported yet"


async def test_watch_gives_each_epoch(
    settings: ServiceSettings, coordination: Coordination, ready: Callable[..., Lease]
) -> None:
    async with serving(settings, coordination) as (publisher, stub):
        for name in ("attention-0", "moe-0", "moe-1"):
            await coordination.register(ready(name))
        await publisher.round(0.0)
        call = stub.WatchCohort(pb.WatchCohortRequest(), timeout=20)
        assert (await call.read()).cohort.epoch == 1
        await coordination.register(ready("moe-2"))
        await publisher.round(1.0)
        second = await asyncio.wait_for(call.read(), 5)
        assert second.cohort.epoch == 2 and len(second.cohort.moe) == 3
        call.cancel()


async def test_answers_go_on_without_redis(
    redis: RedisServer, settings: ServiceSettings, coordination: Coordination, ready: Callable[..., Lease]
) -> None:
    async with serving(settings, coordination) as (publisher, stub):
        for name in ("attention-0", "moe-0", "moe-1"):
            await coordination.register(ready(name))
        await publisher.round(0.0)
        redis.stop()
        cohort = (await stub.GetCohort(pb.GetCohortRequest(), timeout=5)).cohort
        assert cohort.epoch == 1 and cohort.moe[0].state == "gone"
        assert (await stub.GetLayout(pb.GetLayoutRequest(), timeout=5)).layout.version == 1
        error = await failure(stub.GetLayout(pb.GetLayoutRequest(version=9), timeout=5))
        assert isinstance(error, Unavailable) and "Redis at" in str(error)


def placement(*instances: list[int]) -> common_pb2.LayerPlacement:
    return common_pb2.LayerPlacement(instances=[common_pb2.InstancePlacement(experts=i) for i in instances])


GOOD: dict[str, Any] = {
    "topk_ids": [0, 1, 2, 4], "experts_per_token": 2, "num_experts": 5, "placement": placement([0, 1, 4], [2, 3, 4]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"experts_per_token": 0}, "experts_per_token"),
        ({"experts_per_token": 33}, "experts_per_token"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 1025}, "num_experts"),
        ({"topk_ids": [0, 1, 2]}, "topk_ids (length)"),
        ({"topk_ids": [0, 5]}, "topk_ids[1]"),
        ({"topk_ids": [0, 4294967295]}, "topk_ids[1]"),
        ({"placement": placement()}, "placement.instances"),
        ({"placement": placement([0, 1, 5], [2, 3, 4])}, "placement.instances[0].experts"),
        ({"placement": placement([0, 1, 4], [2, 2, 3])}, "placement.instances[1].experts"),
        ({"placement": placement([0, 1], [3, 4])}, "topk_ids[2]"),
        ({"slots": 2}, "slots"),
        ({"slots": 4294967295}, "slots"),
        ({"policy": 99}, "policy"),
    ],
)
async def test_schedule_refuses_bad_input_by_name(
    settings: ServiceSettings, coordination: Coordination, change: dict[str, Any], field: str
) -> None:
    async with serving(settings, coordination) as (_, stub):
        error = await failure(stub.Schedule(pb.ScheduleRequest(**{**GOOD, **change}), timeout=5))
        assert isinstance(error, InvalidArgument) and error.field == field, str(error)


@pytest.mark.parametrize("policy", range(5))
async def test_schedule_is_the_workers_own(
    settings: ServiceSettings, coordination: Coordination, policy: int
) -> None:
    import numpy as np
    from janus_kernels import ReplicaLayout, schedule
    from janus_scheduler.convert import POLICY_NAMES

    instances = [[0, 1, 4], [2, 3, 4], [0, 2]]
    rng = np.random.default_rng(policy)
    ids = np.stack([rng.permutation(5)[:2] for _ in range(40)]).astype(np.int32)
    layout = ReplicaLayout.from_placement(instances, num_experts=5)
    expected = schedule(ids, layout, policy=POLICY_NAMES.get(policy, "optimal"))
    async with serving(settings, coordination) as (_, stub):
        request = pb.ScheduleRequest(
            topk_ids=ids.reshape(-1).tolist(), experts_per_token=2, num_experts=5,
            placement=placement(*instances), policy=policy,
        )  # fmt: skip
        answer = await stub.Schedule(request, timeout=5)
    assert list(answer.replica_ids) == np.asarray(expected.replica_ids).reshape(-1).tolist()
    assert list(answer.instance_load) == np.asarray(expected.instance_load).tolist()
    assert (answer.a_max, answer.slots) == (expected.a_max, 3)
    assert answer.digest == int(expected.digest)
