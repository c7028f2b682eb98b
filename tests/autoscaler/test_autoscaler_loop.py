"""The loop over a real Redis: reports as a known mesh would make them, an actuator that notes what it is asked."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import redis.asyncio as aioredis
from janus_autoscaler.actuators import Actuator, Pool, Sizes
from janus_autoscaler.actuators.base import next_step
from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.keda import ExternalScaler
from janus_autoscaler.loop import Autoscaler
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_autoscaler.office import Office
from janus_autoscaler.service import AutoscalerService
from janus_runtime.channel import connect
from janus_runtime.coordination import Coordination
from janus_runtime.errors import Unavailable, from_rpc_error
from janus_runtime.records import CohortMember, CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_wire.keda import externalscaler_pb2, externalscaler_pb2_grpc
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc
from mesh_cases import CPU, TINY, Reports, truth

pytestmark = pytest.mark.asyncio


class Noted(Actuator):
    """Does at once what it is asked; or fails."""

    def __init__(self, sizes: Sizes) -> None:
        self.now = sizes
        self.steps: list[Sizes] = []
        self.broken = False

    async def sizes(self) -> Sizes:
        return self.now

    async def grow(self, now: Sizes, target: Sizes) -> None:
        self._set(target)

    async def shrink(self, pool: Pool, size: int) -> None:
        self._set((size, self.now[1]) if pool is Pool.ATTENTION else (self.now[0], size))

    def _set(self, sizes: Sizes) -> None:
        if self.broken:
            raise Unavailable("out of machines")
        self.now = sizes
        self.steps.append(sizes)


class Case:
    """A mesh in Redis."""

    def __init__(self, coordination: Coordination, url: str, settings: AutoscalerSettings) -> None:
        self.coordination, self.settings = coordination, settings
        self.redis: Any = aioredis.Redis.from_url(url, protocol=2)
        self.actuator = Noted((1, 1))
        self.reports = Reports()
        self.epoch = self.token = 0
        self.keepers: dict[str, Any] = {}

    async def form(self, sizes: Sizes, *, running: int = 0) -> None:
        """A cohort of these sizes."""
        self.token = self.token or await self.coordination.acquire_leader("scheduler-0", ttl_s=60.0) or 0
        self.epoch = await self.coordination.next_epoch()
        sides = []
        for role, size in zip((Role.ATTENTION, Role.MOE), sizes, strict=True):
            names = [f"{role}-{i}" for i in range(size)]
            for name in [n for n in self.keepers if n.startswith(role) and n not in names]:
                await self.keepers.pop(name).close()
            for name in names:
                load = running // size if role is Role.ATTENTION else 0
                lease = Lease(
                    worker_id=name, member=0, role=role, pid=1, grpc_address="a:1", state=WorkerState.READY,
                    slots=32 if role is Role.MOE else 0, running=load,
                )  # fmt: skip
                self.keepers[name] = await self.coordination.register(lease)
            sides.append(
                [CohortMember(worker_id=n, member=1, grpc_address="a:1", transport_address="") for n in names]
            )
        layout = LayoutRecord(version=self.epoch, num_experts=32, slots=32, placement=())
        record = CohortRecord(
            epoch=self.epoch, attention=tuple(sides[0]), moe=tuple(sides[1]), layout_version=self.epoch
        )
        await self.coordination.publish_cohort(record, layout, self.token)

    async def report(self, sizes: Sizes, batch: float, seconds: int, arrivals: float) -> None:
        """The latest ``seconds``, in the place of what was reported before."""
        self.reports.clear()
        self.reports.epoch = self.epoch
        begin = self.reports.now
        self.reports.run(truth(), *sizes, batch, seconds, arrivals=arrivals)
        shift = time.time() - self.reports.now
        for name, samples in self.reports.samples.items():
            await self.redis.delete(f"{{janus}}:stats:{name}")
            for sample in samples:
                if sample.time_s >= begin:
                    stamp = f"{int(1000 * (sample.time_s + shift))}-0"
                    fields = {k: repr(v) for k, v in sample.values.items()}
                    await self.redis.xadd(f"{{janus}}:stats:{name}", fields, id=stamp)

    def scaler(self, office: Office | None = None, **changes: Any) -> Autoscaler:
        settings = dataclasses.replace(self.settings, **changes)
        store = ObjectiveStore(self.coordination, Objective(tpot_ms=120.0, max_attention=4, max_moe=6))
        return Autoscaler(
            settings, self.coordination, store, model=TINY, hardware=(CPU, CPU),
            actuator=None if settings.actuator == "none" else self.actuator, office=office,
        )  # fmt: skip


@pytest_asyncio.fixture
async def case(coordination: Coordination, settings: Any) -> AsyncIterator[Case]:
    made = Case(
        coordination, settings.redis_url,
        AutoscalerSettings(
            redis_url=settings.redis_url, worker_id="autoscaler-0", mode="act", actuator="local", hold_s=0.0,
            window_s=30.0, interval_s=10.0,
        ),
    )  # fmt: skip
    yield made
    for keeper in made.keepers.values():
        await keeper.close()
    await made.redis.aclose()


async def settled(scaler: Autoscaler) -> None:
    await scaler.decide()
    if scaler._action is not None:
        await asyncio.wait_for(asyncio.shield(scaler._action), 10)


async def test_up_under_load_and_back_to_the_floor_one_at_a_time(case: Case) -> None:
    scaler = case.scaler()
    await case.form((1, 1), running=16)
    await case.report((1, 1), 16.0, 25, arrivals=4.0)
    await settled(scaler)
    assert case.actuator.steps and sum(case.actuator.now) > 2, scaler.state.status
    assert len(case.actuator.steps) == 1, "growth is one step"
    assert scaler.state.verdict is not None and scaler.state.verdict.met
    grown = case.actuator.now
    await case.form(grown, running=0)
    for name in case.reports.samples:
        await case.redis.delete(f"{{janus}}:stats:{name}")
    await settled(scaler)
    assert case.actuator.now == (1, 1) and "nothing is asked" in scaler.state.status
    downs = case.actuator.steps
    assert all(sum(a) - sum(b) == 1 for a, b in itertools.pairwise(downs)), downs
    await settled(scaler)
    assert case.actuator.now == (1, 1), "never below the floor"
    await scaler.close()


async def test_of_two_that_act_one_does(case: Case) -> None:
    """The standby learns and plans; it acts from the moment it is in office, and the other no more."""
    offices = [Office(case.coordination, f"autoscaler-{i}", 30.0) for i in range(2)]
    first, second = (case.scaler(office) for office in offices)
    for office in offices:
        await office.turn()
    await case.form((1, 1), running=16)
    await case.report((1, 1), 16.0, 25, arrivals=4.0)
    await settled(second)
    assert case.actuator.steps == [] and second.state.target is not None
    assert second.state.status.startswith("standing by for autoscaler-0")
    assert second.learner is not None and second.learner.learnt.intervals
    await settled(first)
    assert len(case.actuator.steps) == 1 and first.describe().startswith("acting")
    case.actuator.now = (1, 1)
    await offices[0].resign()
    await offices[1].turn()
    await settled(first)
    assert len(case.actuator.steps) == 1, "no longer in office"
    await settled(second)
    assert len(case.actuator.steps) == 2
    await first.close()
    await second.close()


async def test_an_office_lost_on_the_way_ends_the_way(case: Case) -> None:
    office = Office(case.coordination, "autoscaler-0", 30.0)
    await office.turn()
    scaler = case.scaler(office)
    await case.form((3, 3), running=0)
    case.actuator.now = (3, 3)
    shrink = case.actuator.shrink

    async def slow(pool: Pool, size: int) -> None:
        await shrink(pool, size)
        await office.resign()

    case.actuator.shrink = slow  # type: ignore[method-assign]
    await settled(scaler)
    assert case.actuator.steps == [(2, 3)], "the floor was (1, 1)"
    await scaler.close()


async def test_streams_that_pile_up_do_not_wait_for_the_interval(case: Case) -> None:
    """Once for each rise: the decision plans for as many as there are."""

    async def until_seen(running: int) -> None:
        """A worker's load is told a little later than the rest of its lease."""
        async with asyncio.timeout(5):
            while [w.running for w in await case.coordination.workers("attention")] != [running]:
                await asyncio.sleep(0.05)

    scaler = case.scaler(interval_s=30.0)
    assert not await scaler.piling_up(), "nothing was decided"
    await case.form((1, 1), running=4)
    await case.report((1, 1), 4.0, 25, arrivals=1.0)
    await settled(scaler)
    assert scaler.state.verdict is not None and scaler.state.verdict.best is not None
    planned, decisions = scaler.state.verdict.best.batch, scaler.state.decisions
    assert not await scaler.piling_up(), "as many as planned for"
    many = int(planned + 3 * planned**0.5) + 2
    await case.keepers["attention-0"].update(running=many)
    await until_seen(many)
    assert await scaler.piling_up()
    await settled(scaler)
    assert scaler.state.verdict.best is not None and scaler.state.verdict.best.batch >= many
    assert not await scaler.piling_up()
    await case.keepers["attention-0"].update(running=2 * many)
    await until_seen(2 * many)
    scaler.settings = dataclasses.replace(scaler.settings, interval_s=2.5)
    running = asyncio.create_task(scaler.run())
    async with asyncio.timeout(2.4):
        while scaler.state.decisions == decisions + 1:
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await scaler.close()


async def test_advise_changes_nothing_and_explains(case: Case) -> None:
    scaler = case.scaler(mode="advise", actuator="none")
    await case.form((1, 1), running=16)
    await case.report((1, 1), 16.0, 25, arrivals=4.0)
    await scaler.decide()
    assert case.actuator.steps == []
    async with GrpcServer(case.settings, "autoscaler") as server:
        store = ObjectiveStore(case.coordination, Objective(tpot_ms=120.0))
        server.add(
            autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
            AutoscalerService(scaler, store), "janus.v1.AutoscalerService",
        )  # fmt: skip
        async with connect(await server.start()) as channel:
            stub: Any = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
            plan = await stub.GetPlan(pb.GetPlanRequest(), timeout=5)
            assert plan.mode == "advise" and plan.objective_met and plan.HasField("planned_moe")
            assert (plan.target_attention, plan.target_moe) == scaler.state.target
            assert plan.planned_attention + plan.planned_moe > 2
            assert plan.demand.tokens_per_second == pytest.approx(200, rel=0.1)
            assert {c.name for c in plan.coefficients} >= {"alpha", "beta", "c_a", "c_kv", "c_e"}
            assert plan.observation.tpot_ms_p95 > 0 and plan.observation.output_tokens_per_request == 50
            explained = await stub.Explain(pb.ExplainRequest(), timeout=5)
            assert len(explained.candidates) == 4 * 6
            assert [c.chosen for c in explained.candidates] == [True] + [False] * 23
            assert all(c.reason for c in explained.candidates[1:])
            assert explained.candidates[0].attention_ms + explained.candidates[0].moe_ms > 0
            few = await stub.Explain(pb.ExplainRequest(limit=3), timeout=5)
            assert few.candidates == explained.candidates[:3]
            stats = await stub.GetStats(pb.AutoscalerServiceGetStatsRequest(), timeout=5)
            assert (stats.attention, stats.moe, stats.decisions, stats.actions) == (1, 1, 1, 0)
            assert stats.predicted_tpot_seconds <= 0.12 and stats.objective_met
    await scaler.close()


async def test_an_objective_out_of_reach_is_said_and_does_not_fill_the_machine_park(case: Case) -> None:
    store = ObjectiveStore(case.coordination, Objective(tpot_ms=120.0))
    await store.write(Objective(tpot_ms=0.5, max_attention=4, max_moe=6))
    scaler = case.scaler()
    await case.form((1, 1), running=2)
    await case.report((1, 1), 2.0, 25, arrivals=0.4)
    await settled(scaler)
    assert scaler.state.verdict is not None and not scaler.state.verdict.met
    assert "no size within bounds meets the objective" in scaler.state.status
    assert case.actuator.now <= (4, 6)
    await scaler.close()


async def test_a_platform_that_refuses_is_asked_again_later(case: Case) -> None:
    scaler = case.scaler()
    case.actuator.broken = True
    await case.form((1, 1), running=16)
    await case.report((1, 1), 16.0, 25, arrivals=4.0)
    await settled(scaler)
    assert scaler.state.failed_actions == 1 and "out of machines" in scaler.state.status
    await settled(scaler)
    assert scaler.state.failed_actions == 1, "not at once"
    scaler._not_before, case.actuator.broken = 0.0, False
    await settled(scaler)
    assert sum(case.actuator.now) > 2
    await scaler.close()


async def test_workers_that_others_change_are_what_the_next_decision_begins_from(case: Case) -> None:
    scaler = case.scaler()
    case.actuator.now = (3, 5)  # an operator's doing
    await case.form((3, 5))
    await settled(scaler)
    assert case.actuator.now == (1, 1)
    await scaler.close()


async def test_before_any_step_was_measured_nothing_is_changed(case: Case) -> None:
    scaler = case.scaler()
    case.actuator.now = (2, 3)
    await case.form((2, 3), running=16)
    await settled(scaler)
    assert case.actuator.now == (2, 3) and "no step was measured yet" in scaler.state.status
    await scaler.close()


async def test_without_a_model_or_a_cohort_nothing_is_planned(case: Case) -> None:
    scaler = case.scaler()
    await scaler.decide()
    assert "no cohort" in scaler.state.status and scaler.state.target is None
    store = ObjectiveStore(case.coordination, Objective(tpot_ms=120.0))
    blind = Autoscaler(case.settings, case.coordination, store, model=None, hardware=(CPU, CPU))
    await asyncio.wait_for(blind.run(), 1)
    assert "--model" in blind.state.status


async def test_keda_asks_for_what_was_decided(case: Case) -> None:
    scaler = case.scaler(actuator="keda")
    ref = externalscaler_pb2.ScaledObjectRef(name="janus-moe", namespace="ml", scalerMetadata={"pool": "moe"})
    async with GrpcServer(case.settings, "autoscaler") as server:
        server.add(
            externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server, ExternalScaler(scaler),
            "externalscaler.ExternalScaler",
        )  # fmt: skip
        async with connect(await server.start()) as channel:
            stub: Any = externalscaler_pb2_grpc.ExternalScalerStub(channel)
            assert (await stub.IsActive(ref, timeout=5)).result
            stream = stub.StreamIsActive(ref, timeout=5)
            assert (await stream.read()).result
            stream.cancel()
            spec = (await stub.GetMetricSpec(ref, timeout=5)).metricSpecs
            assert [(s.metricName, s.targetSize, s.targetSizeFloat) for s in spec] == [
                ("janus-moe-workers", 1, 1.0)
            ]
            asked = externalscaler_pb2.GetMetricsRequest(
                scaledObjectRef=ref, metricName="s0-janus-moe-workers"
            )
            with pytest.raises(grpc.RpcError) as caught:
                await stub.GetMetrics(asked, timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            await case.form((1, 1), running=16)
            await case.report((1, 1), 16.0, 25, arrivals=4.0)
            await settled(scaler)
            assert scaler.state.target is not None
            scaler.office = Office(case.coordination, "autoscaler-0", 30.0)
            with pytest.raises(grpc.RpcError) as caught:
                await stub.GetMetrics(asked, timeout=5)
            assert "standing by" in str(caught.value), "only the one in office says what to have"
            await scaler.office.turn()
            (value,) = (await stub.GetMetrics(asked, timeout=5)).metricValues
            assert value.metricValue == value.metricValueFloat == scaler.state.target[1] > 1
            wrong = externalscaler_pb2.ScaledObjectRef(name="x", scalerMetadata={"pool": "gateway"})
            with pytest.raises(grpc.RpcError) as caught:
                await stub.IsActive(wrong, timeout=5)
            assert getattr(from_rpc_error(caught.value), "field", "") == "scalerMetadata.pool"
            scaler.settings = dataclasses.replace(scaler.settings, mode="advise")
            with pytest.raises(grpc.RpcError) as caught:
                await stub.GetMetrics(asked, timeout=5)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    await scaler.close()


async def test_the_next_step() -> None:
    assert next_step((1, 1), (2, 3)) == (2, 3)
    assert next_step((3, 1), (1, 2)) == (3, 2), "what is missing first"
    assert next_step((3, 2), (1, 2)) == (2, 2) and next_step((1, 4), (1, 2)) == (1, 3)
    assert next_step((2, 2), (2, 2)) == (2, 2)
    assert math.isfinite(sum(next_step((1, 1), (1, 1))))
