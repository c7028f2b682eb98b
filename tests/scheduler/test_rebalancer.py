"""Live re-layout as the scheduler does it: real Redis, real gRPC, workers that only say what they were asked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from janus_placement import Recorder
from janus_runtime.coordination import Coordination
from janus_runtime.errors import Internal, InvalidArgument
from janus_runtime.records import Lease
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_scheduler.membership import Rules
from janus_scheduler.publisher import Publisher
from janus_scheduler.rebalancer import Rebalancer
from janus_wire.v1 import moe_pb2, moe_pb2_grpc

pytestmark = pytest.mark.asyncio
EXPERTS, LAYERS, SLOTS, WORKERS = 16, 3, 4, 4
Ready = Callable[..., Lease]


class Worker(moe_pb2_grpc.ExpertServiceServicer):
    def __init__(self) -> None:
        self.loaded: set[tuple[int, int]] = set()
        self.unloaded: set[tuple[int, int]] = set()
        self.failure = ""

    async def LoadExperts(self, request: Any, context: Any) -> Any:
        if self.failure:
            raise Internal(self.failure)
        self.loaded |= {(row.layer, e) for row in request.layers for e in row.experts}
        return moe_pb2.LoadExpertsResponse(loaded=len(self.loaded))

    async def UnloadExperts(self, request: Any, context: Any) -> Any:
        self.unloaded |= {(row.layer, e) for row in request.layers for e in row.experts}
        return moe_pb2.UnloadExpertsResponse()


@dataclasses.dataclass
class Mesh:
    coordination: Coordination
    publisher: Publisher
    rebalancer: Rebalancer
    workers: list[Worker]
    names: list[str]
    keepers: list[Any] = dataclasses.field(default_factory=list)

    async def report(
        self, hot: dict[int, list[int]], seed: int = 0, tokens: int = 4000, seconds: float = 1e-3
    ) -> None:
        """Routing in which the ``hot`` experts of a layer are always active together, and steps that took time."""
        rng = np.random.default_rng(seed)
        for layer in range(LAYERS):
            recorder = Recorder(EXPERTS, 4, rows=1000)
            pool = hot.get(layer, list(range(EXPERTS)))
            for _ in range(tokens // 8):
                recorder.observe(layer, np.array([rng.permutation(pool)[:4] for _ in range(8)]))
            (report,) = recorder.take()
            await self.coordination.report_routing(report.to_fields())
        for name in self.names:
            for steps in (0, 1000):
                stats = {"steps": steps, "a_max_sum": 4.0 * steps, "moe_seconds": 4.0 * seconds * steps}
                await self.coordination.report_stats(name, stats)
                await asyncio.sleep(0.02)

    def spread(self, layer: int, experts: list[int]) -> int:
        """Most of these experts on one rank, in the layout in force."""
        assert self.publisher.layout is not None
        return max(len(set(row) & set(experts)) for row in self.publisher.layout.placement[layer])


@contextlib.asynccontextmanager
async def mesh(
    coordination: Coordination, settings: ServiceSettings, ready: Ready, *, min_replicas: int = 1, slots: int = SLOTS,
    **more: Any,
) -> AsyncIterator[Mesh]:  # fmt: skip
    """``more``: fields of the MoE workers' leases; a ``{}`` in ``node`` is the worker's number, modulo two."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [Worker() for _ in range(WORKERS)]
        keepers: list[Any] = []
        shape = {"num_experts": EXPERTS, "moe_layers": LAYERS}
        await coordination.register(ready("attention-0", **shape))
        for i, worker in enumerate(workers):
            server = await stack.enter_async_context(GrpcServer(settings, "moe"))
            server.add(moe_pb2_grpc.add_ExpertServiceServicer_to_server, worker, "janus.v1.ExpertService")
            address = await server.start()
            fields = {k: v.format(i % 2) if k == "node" else v for k, v in more.items()}
            lease = ready(f"moe-{i}", grpc_address=address, slots=slots, **shape, **fields)
            keepers.append(await coordination.register(lease))
        rules = Rules(min_replicas=min_replicas)
        publisher = Publisher(coordination, "scheduler-0", rules, settle_s=0.0, lease_ttl_s=30.0)
        await publisher.round(0.0)
        assert publisher.cohort is not None
        rebalancer = Rebalancer(
            coordination, publisher, settings, every_s=0, horizon_s=600, min_replicas=min_replicas
        )
        yield Mesh(
            coordination, publisher, rebalancer, workers, [f"moe-{i}" for i in range(WORKERS)], keepers
        )


HOT = {0: [0, 4, 8, 12], 2: [1, 5, 9, 13]}
"""Round robin has each of these sets on one rank."""


async def test_it_loads_beside_and_then_switches(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready) as m:
        assert m.publisher.layout is not None
        before = m.publisher.layout
        assert m.spread(0, HOT[0]) == 4
        await m.report(HOT)
        dry = await m.rebalancer.rebalance(dry_run=True)
        assert not dry.changed and dry.replicas_loaded > 0 and m.publisher.layout == before
        assert not any(worker.loaded for worker in m.workers)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert outcome.changed, outcome.reason
        assert outcome.replicas_loaded == dry.replicas_loaded
        assert (m.spread(0, HOT[0]), m.spread(2, HOT[2])) == (1, 1)
        after = m.publisher.layout
        assert after.placement[1] == before.placement[1], "a balanced layer stays"
        cohort = await coordination.cohort()
        assert cohort is not None and (cohort.epoch, cohort.layout_version) == (2, after.version)
        assert await coordination.layout(after.version) == after
        for rank, worker in enumerate(m.workers):
            gained = {
                (layer, e) for layer in range(LAYERS)
                for e in set(after.placement[layer][rank]) - set(before.placement[layer][rank])
            }  # fmt: skip
            assert worker.loaded == gained
            assert not worker.unloaded
        verdict = {v.layer: v for v in outcome.layers}[0]
        assert verdict.go and verdict.a_max_before == pytest.approx(4.0) and verdict.a_max_after < 1.5
        await m.publisher.round(1.0)
        assert m.publisher.layout == after, "the next look at membership keeps it"
        # The same routing again: nothing is left to gain.
        await m.report(HOT, seed=1)
        again = await m.rebalancer.rebalance(dry_run=False)
        assert not again.changed and "stays" in again.reason


async def test_a_placement_that_is_asked_for_is_taken(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready) as m:
        assert m.publisher.layout is not None
        before = m.publisher.layout
        turned = [tuple(layer[1:] + layer[:1]) for layer in before.placement]
        target = [before.placement[0], *turned[1:]]
        dry = await m.rebalancer.rebalance(dry_run=True, target=target)
        assert not dry.changed and dry.replicas_loaded == 2 * WORKERS * SLOTS
        outcome = await m.rebalancer.rebalance(dry_run=False, target=target)
        assert outcome.changed and m.publisher.layout.placement == tuple(target)
        assert [v.layer for v in outcome.layers] == [1, 2]
        assert "a_max" not in outcome.reason, "nothing was sampled yet"
        for rank, worker in enumerate(m.workers):
            assert worker.loaded == {(layer, e) for layer in (1, 2) for e in target[layer][rank]}
        again = await m.rebalancer.rebalance(dry_run=False, target=target)
        assert not again.changed and again.reason == "this placement is in force"
        await m.report(HOT)
        await m.rebalancer.rebalance(dry_run=True)
        back = await m.rebalancer.rebalance(dry_run=False, target=before.placement)
        assert back.changed and "expected a_max" in back.reason


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda p: p[:2], "placement of 2 MoE layers; this model has 3"),
        (lambda p: [p[0][:3], *p[1:]], "layer 0: placement of 3 instances"),
        (lambda p: [p[0], ((0, 0, 1, 2), *p[1][1:]), p[2]], "layer 1: instance 0 hosts an expert twice"),
        (lambda p: [*p[:2], ((0, 1, 2, 16), *p[2][1:])], "layer 2: instance 0 hosts"),
        (lambda p: [*p[:2], ((0, 1, 2, 3, 4), *p[2][1:])], "layer 2: instance 0 hosts 5 experts in 4 slots"),
        (lambda p: [*p[:2], (p[2][1], *p[2][1:])], "layer 2: experts [2, 6, 10, 14] have fewer than 1"),
    ],
)
async def test_a_placement_that_workers_cannot_have_is_refused(
    coordination: Coordination, settings: ServiceSettings, ready: Ready, broken: Callable[..., Any], says: str
) -> None:
    async with mesh(coordination, settings, ready) as m:
        assert m.publisher.layout is not None
        before = m.publisher.layout
        with pytest.raises(InvalidArgument) as refused:
            await m.rebalancer.rebalance(dry_run=False, target=broken(before.placement))
        assert says in str(refused.value)
        assert m.publisher.layout == before and not any(worker.loaded for worker in m.workers)


async def test_a_worker_that_cannot_load_ends_the_attempt(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready) as m:
        before, cohort = m.publisher.layout, m.publisher.cohort
        await m.report(HOT)
        m.workers[2].failure = "disk on fire"
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert not outcome.changed
        assert "given up, nothing has changed: moe-2: " in outcome.reason and "disk on fire" in outcome.reason
        assert (m.publisher.layout, m.publisher.cohort) == (before, cohort)
        for worker in m.workers:
            assert worker.loaded <= worker.unloaded
        m.workers[2].failure = ""
        assert (await m.rebalancer.rebalance(dry_run=False)).changed


async def test_a_new_epoch_in_between_ends_the_attempt(
    coordination: Coordination, settings: ServiceSettings, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh(coordination, settings, ready) as m:
        await m.report(HOT)
        load = m.rebalancer._load

        async def load_and_lose(*args: Any) -> str:
            text = await load(*args)
            await coordination.register(ready("attention-1", num_experts=EXPERTS, moe_layers=LAYERS))
            await m.publisher.round(1.0)
            return text

        monkeypatch.setattr(m.rebalancer, "_load", load_and_lose)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert not outcome.changed and "epoch 1 is not in force any more" in outcome.reason
        assert m.publisher.cohort is not None and m.publisher.cohort.epoch == 2
        assert all(worker.loaded == worker.unloaded for worker in m.workers)


async def test_a_scheduler_that_lost_its_office_lets_go_of_what_was_loaded(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready) as m:
        await m.report(HOT)
        before = m.publisher.layout
        token = m.publisher._token
        assert token is not None
        await coordination.resign_leader("scheduler-0", token)
        assert await coordination.acquire_leader("scheduler-1", 30.0)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert not outcome.changed and "another scheduler is in office" in outcome.reason
        assert m.publisher.layout == before
        assert all(worker.loaded == worker.unloaded for worker in m.workers)
        assert any(worker.loaded for worker in m.workers)


@pytest.mark.parametrize("seconds", [0.0, 1e-12])
async def test_what_saves_no_time_is_not_moved(
    coordination: Coordination, settings: ServiceSettings, ready: Ready, seconds: float
) -> None:
    async with mesh(coordination, settings, ready) as m:
        await m.report(HOT, seconds=seconds)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert not outcome.changed and "costs" in outcome.reason


async def test_strange_reports_are_skipped_and_silence_is_no_reason(
    coordination: Coordination, settings: ServiceSettings, ready: Ready, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh(coordination, settings, ready) as m:
        for _ in range(3):
            await coordination.report_routing({"head": b"nonsense"})
        assert (await m.rebalancer.rebalance(dry_run=True)).reason == "no routing was reported yet"
        assert len([r for r in caplog.records if "did not write" in r.message]) == 1
        other = Recorder(7, 2)
        other.observe(0, np.array([[1, 2]]))
        await coordination.report_routing(other.take()[0].to_fields())
        assert "of 7 experts; this mesh has 16" in (await m.rebalancer.rebalance(dry_run=True)).reason
        await m.report(HOT)
        assert (await m.rebalancer.rebalance(dry_run=False)).changed
        quiet = await m.rebalancer.rebalance(dry_run=False, only_news=True)
        assert quiet.reason == "no routing since the last look"


async def test_a_switch_costs_what_attention_workers_measured(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready) as m:
        price = m.rebalancer._switch_s

        async def told(switches: float, seconds: float) -> float:
            stats = {"layout_switches": switches, "layout_switch_seconds": seconds}
            await coordination.report_stats("attention-0", stats)
            return await price()

        assert await price() == 0.1, "a guess, before there was one"
        assert await told(2.0, 0.6) == pytest.approx(0.2), "half the guess, half of 0.3"
        assert await price() == pytest.approx(0.2), "nothing new"
        assert await told(3.0, 0.5) == pytest.approx(0.1005), (
            "steps vary more than this one cost: 1 ms at least"
        )
        assert await told(1.0, 0.3) == pytest.approx(0.20025), "the worker was started again"
        assert await told(2.0, 1e6) == pytest.approx(5.100125), "10 s at most"
        await m.report(HOT, seconds=2e-8)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert not outcome.changed and "the switch costs 5.10 s" in outcome.reason


async def test_where_memory_is_short_layers_change_in_turn(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready, beside=3) as m:
        layouts = []
        relayout = m.publisher.relayout
        tasks: list[Any] = []

        async def take_up(version: int) -> None:
            await asyncio.sleep(0.2)
            for keeper in m.keepers:
                await keeper.update(epoch=version)

        async def noted(epoch: int, placement: Any) -> Any:
            loaded = [set(worker.loaded) for worker in m.workers]
            moved = await relayout(epoch, placement)
            assert moved is not None
            assert all(lease.epoch in (0, epoch) for lease in await coordination.workers("moe"))
            layouts.append((moved, loaded))
            tasks.append(asyncio.create_task(take_up(moved.version)))
            return moved

        m.publisher.relayout = noted  # type: ignore[method-assign]
        await m.report(HOT)
        dry = await m.rebalancer.rebalance(dry_run=True)
        outcome = await m.rebalancer.rebalance(dry_run=False)
        assert outcome.changed and outcome.reason.endswith(", in 2 stages"), outcome.reason
        assert outcome.replicas_loaded == dry.replicas_loaded
        (first, loaded), (second, _) = layouts
        assert second.version > first.version and m.publisher.layout == second
        assert all({layer for layer, _ in keys} <= {0} for keys in loaded), (
            "layer 2 after layer 0 was switched"
        )
        assert max(len(keys) for keys in loaded) <= 3
        assert first.placement[2] != second.placement[2] and first.placement[0] == second.placement[0]
        assert (m.spread(0, HOT[0]), m.spread(2, HOT[2])) == (1, 1)
        await asyncio.gather(*tasks)


async def test_a_failure_between_stages_leaves_what_was_reached(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready, beside=3) as m:
        relayout = m.publisher.relayout
        loaded: list[set[tuple[int, int]]] = []

        async def then_fail(epoch: int, placement: Any) -> Any:
            moved = await relayout(epoch, placement)
            assert moved is not None
            for keeper in m.keepers:
                await keeper.update(epoch=moved.version)
            loaded.extend(set(worker.loaded) for worker in m.workers)
            m.workers[1].failure = "the disk is gone"
            return moved

        m.publisher.relayout = then_fail  # type: ignore[method-assign]
        await m.report(HOT)
        before = m.publisher.layout
        outcome = await m.rebalancer.rebalance(dry_run=False)
        after = m.publisher.layout
        assert outcome.changed and "given up, after 1 of 2 stages" in outcome.reason
        assert "the disk is gone" in outcome.reason
        assert before is not None and after is not None and outcome.layout_version == after.version
        assert after.placement[0] != before.placement[0] and after.placement[2] == before.placement[2]
        assert outcome.replicas_loaded == sum(map(len, loaded))
        for worker, first in zip(m.workers, loaded, strict=True):
            assert not worker.unloaded & first, "the first stage's are in use"
            assert worker.loaded - first <= worker.unloaded, "the second's are let go"


async def test_a_layer_that_no_memory_is_left_for_stays(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready, beside=1) as m:
        target = [[list(range(SLOTS * g, SLOTS * (g + 1))) for g in range(WORKERS)]] * LAYERS
        outcome = await m.rebalancer.rebalance(dry_run=False, target=target)
        assert not outcome.changed and "layer 0 alone loads more" in outcome.reason
        assert not any(worker.loaded for worker in m.workers)


async def test_replicas_stay_on_both_nodes_wherever_they_move(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    async with mesh(coordination, settings, ready, min_replicas=2, slots=8, node="node-{}") as m:
        moved = 0
        for seed in range(3):
            assert m.publisher.layout is not None
            hot = {}
            for index, layer in enumerate(m.publisher.layout.placement):
                hosts = {e: tuple(g for g, row in enumerate(layer) if e in row) for e in range(EXPERTS)}
                together = max(Counter(hosts.values()).items(), key=lambda item: item[1])[0]
                hot[index] = [e for e in range(EXPERTS) if hosts[e] == together][:4]
            await m.report({k: v for k, v in hot.items() if len(v) == 4}, seed=seed)
            moved += (await m.rebalancer.rebalance(dry_run=False)).changed
        layout = m.publisher.layout
        assert moved and layout is not None
        for layer in layout.placement:
            for expert in range(EXPERTS):
                assert {g % 2 for g, row in enumerate(layer) if expert in row} == {0, 1}
