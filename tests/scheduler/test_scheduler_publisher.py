"""Rounds of the publisher against a real Redis; time is handed in."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from janus_runtime.coordination import OFFICE_FREE, Coordination
from janus_runtime.errors import StaleLeader
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings
from janus_scheduler.membership import Rules
from janus_scheduler.publisher import Publisher, build_layout

pytestmark = pytest.mark.asyncio

Ready = Callable[..., Lease]


def publisher(coordination: Coordination, name: str = "scheduler-0", **more: Any) -> Publisher:
    arguments: dict[str, Any] = {"settle_s": 0.3, "lease_ttl_s": 5.0, **more}
    return Publisher(coordination, name, arguments.pop("rules", Rules()), **arguments)


async def test_settles_then_publishes_cohort_and_layout(coordination: Coordination, ready: Ready) -> None:
    p = publisher(coordination)
    await p.round(0.0)
    assert p.in_office and "waiting for more attention workers" in p.status
    for name in ("attention-0", "moe-0", "moe-1"):
        await coordination.register(ready(name))
    assert await p.round(10.0) == pytest.approx(0.3)
    assert await coordination.cohort() is None
    await p.round(10.31)
    record = await coordination.cohort()
    assert record is not None and record.epoch == 1 and record == p.cohort
    assert record.model == "tiny float32" and record.gating == "moe" and record.scheduling == "optimal"
    layout = await coordination.layout(record.layout_version)
    assert layout is not None and layout == p.layout
    assert len(layout.placement) == 2 and layout.slots == 4 and layout.num_experts == 8
    await p.round(11.0)
    assert (await coordination.cohort()) == record
    assert p.status == "epoch 1: 1 attention, 2 MoE, layout 1"


async def test_flapping_holds_it_back_and_load_does_not(coordination: Coordination, ready: Ready) -> None:
    p = publisher(coordination)
    keepers = [await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1")]
    await p.round(0.0)
    await keepers[0].update(detail="busy")
    extra = await coordination.register(ready("moe-2"))
    await p.round(0.29)
    assert await p.round(0.35) == pytest.approx(0.24)
    await extra.update(detail="still there")
    await p.round(0.60)
    record = await coordination.cohort()
    assert record is not None and len(record.moe) == 3


async def test_join_and_leave_are_new_epochs(coordination: Coordination, ready: Ready) -> None:
    p = publisher(coordination, settle_s=0.0)
    keepers = {n: await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1")}
    await p.round(0.0)
    keepers["moe-2"] = await coordination.register(ready("moe-2"))
    await p.round(1.0)
    second = await coordination.cohort()
    assert second is not None and second.epoch == 2
    assert [m.worker_id for m in second.moe] == ["moe-0", "moe-1", "moe-2"]
    assert second.layout_version == 2
    await keepers["moe-0"].close()
    await p.round(2.0)
    third = await coordination.cohort()
    assert third is not None and third.epoch == 3
    assert [m.worker_id for m in third.moe] == ["moe-1", "moe-2"]
    await coordination.register(ready("attention-1"))
    await p.round(3.0)
    fourth = await coordination.cohort()
    assert fourth is not None and fourth.epoch == 4
    assert fourth.layout_version == 3, "the MoE side did not change"


async def test_epoch_is_above_what_any_worker_runs(coordination: Coordination, ready: Ready) -> None:
    p = publisher(coordination, settle_s=0.0)
    for lease in (ready("attention-0", epoch=41), ready("moe-0"), ready("moe-1")):
        await coordination.register(lease)
    await p.round(0.0)
    record = await coordination.cohort()
    assert record is not None and record.epoch == 42


async def test_a_second_scheduler_stands_by_and_takes_over(coordination: Coordination, ready: Ready) -> None:
    first, second = publisher(coordination), publisher(coordination, "scheduler-1")
    for name in ("attention-0", "moe-0", "moe-1"):
        await coordination.register(ready(name))
    for now in (0.0, 0.1, 0.31, 0.5):
        await first.round(now)
        await second.round(now)
    assert not second.in_office and second.status == "standing by for scheduler-0"
    assert second.cohort == first.cohort is not None
    await first.resign()
    await second.round(1.0)
    assert second.in_office
    await second.round(2.0)
    record = await coordination.cohort()
    assert record is not None and record.epoch == 1, "taking over changes nothing"


async def test_a_stale_leader_cannot_publish(coordination: Coordination, ready: Ready) -> None:
    stale = publisher(coordination, settle_s=0.0, lease_ttl_s=0.2)
    await stale.round(0.0)
    token = stale._token
    await asyncio.sleep(0.3)  # it sleeps through its office
    fresh = publisher(coordination, "scheduler-1", settle_s=0.0)
    for name in ("attention-0", "moe-0", "moe-1"):
        await coordination.register(ready(name))
    await fresh.round(1.0)
    record = await coordination.cohort()
    # It wakes in the middle of a round, past the renewal: the write itself is refused.
    decision_leases = await coordination.workers()
    from janus_scheduler.membership import Form, decide

    decision = decide(decision_leases, None, Rules())
    assert isinstance(decision, Form)
    assert stale._token == token
    with pytest.raises(StaleLeader):
        await stale._publish(decision, decision_leases)
    assert await coordination.cohort() == record
    await stale.round(2.0)
    assert not stale.in_office and stale.status == "standing by for scheduler-1"


async def test_a_redis_that_comes_back_empty_gets_the_same_cohort(tmp_path: Path, ready: Ready) -> None:
    server = RedisServer.start(tmp_path)
    settings = ServiceSettings(redis_url=server.url, worker_id="x", redis_wait_s=5, lease_ttl_s=1.5)
    coordination = await Coordination.connect(settings)
    p = publisher(coordination, settle_s=0.05, lease_ttl_s=1.5)
    running = asyncio.ensure_future(p.run())
    keepers = [await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1")]
    await until(lambda: p.cohort is not None)
    before = p.cohort
    server.stop()
    await until(lambda: "cannot coordinate" in p.status)
    server = RedisServer.start(tmp_path)
    await until(lambda: p.in_office and p.status.startswith("epoch 1"))
    assert await coordination.cohort() == before
    assert await coordination.layout(1) == p.layout
    await keepers[2].close()  # and it still sees workers go
    await until(lambda: "waiting for more MoE workers" in p.status, 8)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for keeper in keepers:
        await keeper.close()
    await coordination.close()
    server.stop()


async def test_leases_that_redis_lost_are_waited_for_before_anyone_is_dropped(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    p = publisher(coordination, settle_s=0.0)
    names = ("attention-0", "moe-0", "moe-1", "moe-2")
    keepers = [await coordination.register(ready(n)) for n in names]
    await p.round(time.monotonic())
    before = await coordination.cohort()
    assert before is not None and len(before.moe) == 3
    client: Any = aioredis.Redis.from_url(settings.redis_url, protocol=2)
    await client.flushall()
    await client.aclose()
    for keeper in keepers[:3]:  # moe-2 renews later than the others
        await keeper._try_write()
    for _ in range(2):
        await p.round(time.monotonic())
    assert await coordination.cohort() == before
    assert "waiting for moe-2 to renew" in p.status
    await p.round(time.monotonic() + 10.0)  # its time to live is over: it is gone
    after = await coordination.cohort()
    assert after is not None and after.epoch == 2 and [m.worker_id for m in after.moe] == ["moe-0", "moe-1"]
    for keeper in keepers:
        await keeper.close()


async def test_garbage_in_the_cohort_and_layout_keys_is_replaced(
    coordination: Coordination, settings: ServiceSettings, ready: Ready
) -> None:
    client: Any = aioredis.Redis.from_url(settings.redis_url, protocol=2)
    await client.set("{janus}:cohort", "garbage")
    p = publisher(coordination, settle_s=0.0)
    for name in ("attention-0", "moe-0", "moe-1"):
        await coordination.register(ready(name))
    await p.round(0.0)
    assert (await coordination.cohort()) == p.cohort is not None
    await client.set("{janus}:cohort", "[1]")
    await p.round(1.0)
    assert (await coordination.cohort()) == p.cohort
    # Another scheduler starts and finds the layout destroyed: it makes a new epoch with a readable one.
    await client.set("{janus}:layout:1", "{}")
    await p.resign()
    other = publisher(coordination, "scheduler-1", settle_s=0.0)
    await other.round(2.0)
    record = await coordination.cohort()
    assert record is not None and record.epoch == 2 and record.layout_version == 2
    await client.aclose()


async def test_refusals_are_said(
    coordination: Coordination, ready: Ready, caplog: pytest.LogCaptureFixture
) -> None:
    p = publisher(coordination, settle_s=0.0)
    for lease in (ready("attention-0"), ready("moe-0"), ready("moe-1"), ready("moe-2", model="other")):
        await coordination.register(lease)
    for now in (0.0, 1.0, 2.0):
        await p.round(now)
    assert "left out: moe-2 does not fit attention-0: model is 'other', not 'tiny float32'" in p.status
    assert len([r for r in caplog.records if "left out of the cohort" in r.message]) == 1


async def test_layout_of_unequal_instances(ready: Ready) -> None:
    moe = [ready("moe-0", slots=2), ready("moe-1", slots=7)]
    layout = build_layout(moe, 5, None)
    assert layout.slots == 7 and [len(i) for i in layout.placement[0]] == [2, 7]
    ranks = ["moe-0", "moe-1"]
    assert build_layout(moe, 6, layout, ranks) is layout
    assert build_layout([dataclasses.replace(moe[0], slots=3), moe[1]], 6, layout, ranks).version == 6


async def test_draining_is_a_state_of_the_lease(coordination: Coordination, ready: Ready) -> None:
    p = publisher(coordination, settle_s=0.0)
    keepers = [await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1", "moe-2")]
    await p.round(0.0)
    await keepers[1].update(state=WorkerState.DRAINING)
    await p.round(1.0)
    record = await coordination.cohort()
    assert record is not None and [m.worker_id for m in record.moe] == ["moe-1", "moe-2"]


async def test_an_expired_lease_is_seen_when_it_expires(settings: ServiceSettings, ready: Ready) -> None:
    coordination = await Coordination.connect(dataclasses.replace(settings, lease_ttl_s=1.5))
    p = publisher(coordination, settle_s=0.0, lease_ttl_s=60.0)  # its own rounds are seconds apart
    running = asyncio.ensure_future(p.run())
    keepers = [await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1")]
    await until(lambda: p.status.startswith("epoch 1"))
    await asyncio.sleep(1.0)
    task = keepers[2]._task
    assert task is not None
    task.cancel()  # as a process that was killed
    client: Any = aioredis.Redis.from_url(settings.redis_url, protocol=2)
    left = await client.pttl("{janus}:lease:moe:moe-1") / 1000
    await client.aclose()
    began = time.monotonic()
    await until(lambda: "waiting for more MoE workers" in p.status)
    assert left - 0.1 < time.monotonic() - began < left + 0.4
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for keeper in keepers:
        await keeper.close()
    await coordination.close()


async def until(condition: Callable[[], bool], seconds: float = 6.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_who_died_while_redis_was_away_is_not_waited_for(
    coordination: Coordination, ready: Ready
) -> None:
    told: list[tuple[int, set[int]]] = []
    p = publisher(
        coordination, settle_s=0.0, on_leases=lambda leases, members: told.append((len(leases), set(members)))
    )
    keepers = {n: await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1", "moe-2")}
    members = {keeper.lease.member for keeper in keepers.values()}
    await p.round(time.monotonic())
    await p.round(time.monotonic())
    assert told[-1] == (4, members)
    calls = aioredis.Redis.from_url(coordination._redis.url)
    await calls.flushall()
    await calls.aclose()
    for name in ("attention-0", "moe-0", "moe-1"):
        await keepers[name].update(detail="here again")
    await p.round(time.monotonic())
    assert told[-1] == (3, members), "the cohort's members are watched whatever their leases"
    assert p.status.endswith("waiting for moe-2 to renew their leases")
    p.dead(keepers["moe-2"].lease.member)
    for _ in range(2):
        await p.round(time.monotonic())
        await asyncio.sleep(0.05)
    record = await coordination.cohort()
    assert record is not None and [m.worker_id for m in record.moe] == ["moe-0", "moe-1"]


async def test_the_lease_of_one_known_dead_counts_for_nothing(
    coordination: Coordination, ready: Ready
) -> None:
    p = publisher(coordination, settle_s=0.0)
    keepers = {n: await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1", "moe-2")}
    await p.round(0.0)
    p.dead(keepers["moe-0"].lease.member)  # and its lease could not be deleted
    await p.round(1.0)
    await p.round(1.1)
    record = await coordination.cohort()
    assert record is not None and [m.worker_id for m in record.moe] == ["moe-1", "moe-2"]


async def test_the_office_of_a_dead_scheduler_is_free_at_once(
    coordination: Coordination, ready: Ready
) -> None:
    first, second = publisher(coordination), publisher(coordination, "scheduler-1")
    lease = Lease(worker_id="scheduler-0", member=0, role=Role.SCHEDULER, pid=1, grpc_address="x:1", node="")
    lease = (await coordination.register(lease)).lease
    await first.round(0.0)
    await second.round(0.0)
    with coordination.watch_events(OFFICE_FREE) as watcher:
        await watcher.wait(2.0)  # it listens
        await coordination.bury(dataclasses.replace(lease, worker_id="scheduler-1"))  # holds no office
        assert not await watcher.wait(0.2)
        await coordination.bury(lease)
        assert await watcher.wait(2.0)
    await second.round(0.1)
    assert second.in_office
    token = first._token
    await first.round(0.2)  # if it lives after all, it has lost it
    assert token is not None and not first.in_office


async def test_a_silent_member_is_left_out_until_it_answers(coordination: Coordination, ready: Ready) -> None:
    asked: list[tuple[set[int], set[int]]] = []
    p = publisher(
        coordination, settle_s=0.0, on_late=lambda late, waiting: asked.append((set(late), set(waiting)))
    )
    keepers = {n: await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1", "moe-2")}
    member = {name: keeper.lease.member for name, keeper in keepers.items()}
    await p.round(0.0)
    await keepers["attention-0"].update(epoch=1, late=(member["moe-1"], 999))
    await keepers["moe-0"].update(epoch=0, late=(member["moe-2"],))  # of another epoch
    await p.round(1.0)
    assert asked == [({member["moe-1"]}, {member["attention-0"]})]

    async def ranks(now: float) -> list[str]:
        for later in (0.0, 0.1):
            await p.round(now + later)
        record = await coordination.cohort()
        assert record is not None
        return [m.worker_id for m in record.moe]

    assert await ranks(1.5) == ["moe-0", "moe-1", "moe-2"]
    p.silent(member["moe-1"], True)
    assert await ranks(2.0) == ["moe-0", "moe-2"]
    p.silent(member["moe-0"], True)  # without it there are too few slots: the cohort in force stands
    assert await ranks(3.0) == ["moe-0", "moe-2"] and "waiting for more MoE workers" in p.status
    p.silent(member["moe-0"], False)
    p.silent(member["moe-1"], False)
    assert await ranks(4.0) == ["moe-0", "moe-2", "moe-1"]


async def test_an_epoch_follows_the_one_before_unless_somebody_was_lost(
    coordination: Coordination, ready: Ready
) -> None:
    p = publisher(coordination, settle_s=0.0)
    keepers = {n: await coordination.register(ready(n)) for n in ("attention-0", "moe-0", "moe-1")}

    async def follows(now: float) -> int:
        for later in (0.0, 0.1):
            await p.round(now + later)
        record = await coordination.cohort()
        assert record is not None
        return record.follows

    assert await follows(0.0) == 0
    keepers["moe-2"] = await coordination.register(ready("moe-2"))
    assert await follows(1.0) == 1
    await keepers["moe-0"].update(state=WorkerState.DRAINING)
    assert await follows(2.0) == 2
    await coordination.register(ready("moe-3"))
    await keepers["moe-2"].close()
    assert await follows(3.0) == 0


async def test_a_lease_that_ends_after_redis_came_back_is_not_waited_for(
    coordination: Coordination, ready: Ready
) -> None:
    p = publisher(coordination, settle_s=0.0)
    names = ("attention-0", "moe-0", "moe-1", "moe-2")
    keepers = {n: await coordination.register(ready(n)) for n in names}
    await p.round(time.monotonic())
    calls = aioredis.Redis.from_url(coordination._redis.url)
    await calls.flushall()
    await calls.aclose()
    for name in names[:3]:
        await keepers[name].update(detail="here again")
    await p.round(time.monotonic())
    assert "waiting for moe-2 to renew" in p.status
    await keepers["moe-2"].update(detail="here again")
    await p.round(time.monotonic())
    await keepers["moe-2"].close()  # it stops
    for _ in range(2):
        await p.round(time.monotonic())
        await asyncio.sleep(0.05)
    record = await coordination.cohort()
    assert record is not None and [m.worker_id for m in record.moe] == ["moe-0", "moe-1"]
