"""Leases, cohort, office and statistics against a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio as aioredis
from janus_runtime.coordination import LAYOUTS_KEPT, Coordination
from janus_runtime.errors import FailedPrecondition, InvalidArgument, StaleLeader, Unavailable
from janus_runtime.lease import Keys, LeaseKeeper
from janus_runtime.records import (
    CohortMember,
    CohortRecord,
    LayoutRecord,
    Lease,
    RecordError,
    Role,
    WorkerState,
)
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings

pytestmark = pytest.mark.asyncio


def lease(name: str = "moe-0", role: Role = Role.MOE, **more: Any) -> Lease:
    return Lease(worker_id=name, member=0, role=role, pid=1, grpc_address="127.0.0.1:1", **more)


def cohort(epoch: int, layout: int = 1) -> CohortRecord:
    member = CohortMember(worker_id="moe-0", member=1, grpc_address="a:1", transport_address="AA==")
    return CohortRecord(epoch=epoch, attention=(), moe=(member,), layout_version=layout)


def layout(version: int) -> LayoutRecord:
    return LayoutRecord(version=version, num_experts=2, slots=2, placement=(((0, 1),),))


@pytest_asyncio.fixture
async def raw(settings: ServiceSettings) -> AsyncIterator[Any]:
    """A client beside Coordination's."""
    client = aioredis.Redis.from_url(settings.redis_url, protocol=2)
    yield client
    await client.aclose()


async def test_register_update_close(coordination: Coordination) -> None:
    keeper = await coordination.register(lease())
    assert keeper.lease.member > 0
    assert await coordination.workers() == [keeper.lease]
    await keeper.update(state=WorkerState.READY, detail="at work", epoch=3)
    (seen,) = await coordination.workers("moe")
    assert (seen.state, seen.detail, seen.epoch) == (WorkerState.READY, "at work", 3)
    assert await coordination.workers(Role.ATTENTION) == []
    await keeper.close()
    assert await coordination.workers() == []


async def test_closed_coordination_renews_nothing(settings: ServiceSettings, raw: Any) -> None:
    """A renewal afterwards would open a connection that nobody closes."""
    short = dataclasses.replace(settings, lease_ttl_s=0.3)
    coordination = await Coordination.connect(short)
    for i in range(3):
        await coordination.register(lease(f"moe-{i}"))
    await coordination.close()
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "janus-lease"]
    await asyncio.sleep(0.5)
    assert len(await raw.client_list()) == 1  # ours
    assert not await raw.exists(Keys("janus").lease("moe:moe-0"))


async def test_members_are_unique_even_when_redis_forgets(coordination: Coordination, raw: Any) -> None:
    before = [await coordination.allocate_member() for _ in range(3)]
    await raw.flushall()
    # The clock makes up for the lost counter: registrations are rarer than one a second on the long run.
    await asyncio.sleep(max(0.0, before[-1] - before[0] + 1.0))
    after = [await coordination.allocate_member() for _ in range(3)]
    assert len({*before, *after}) == 6 and max([*before, *after]) < 2**32


async def test_lease_is_renewed_and_expires_without_its_keeper(settings: ServiceSettings, raw: Any) -> None:
    short = dataclasses.replace(settings, lease_ttl_s=0.6)
    coordination = await Coordination.connect(short)
    keeper = await coordination.register(lease())
    await asyncio.sleep(1.0)
    assert await coordination.workers() == [keeper.lease]
    assert keeper._task is not None
    keeper._task.cancel()  # as a process that was killed
    await asyncio.sleep(0.8)
    assert await coordination.workers() == []
    assert await raw.smembers("{janus}:workers") == set()
    await coordination.close()


async def test_load_is_coalesced_and_announced_to_nobody(coordination: Coordination, raw: Any) -> None:
    keeper = await coordination.register(lease())
    client = raw
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe("{janus}:events")
    await pubsub.get_message(timeout=1)
    calls = (await client.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    for n in range(1, 201):
        await keeper.update(running=n)
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.6)
    assert (await coordination.workers())[0].running == 200
    later = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert later - calls <= 8
    assert await pubsub.get_message(timeout=0.1) is None
    await keeper.update(state=WorkerState.READY)
    message = await pubsub.get_message(timeout=1)
    assert message["data"] == b"lease moe:moe-0 ready"
    await pubsub.aclose()
    await keeper.close()


async def test_same_worker_id_takes_over(coordination: Coordination, settings: ServiceSettings) -> None:
    old = await coordination.register(lease())
    new = await coordination.register(lease())
    await old._try_write()
    with pytest.raises(FailedPrecondition, match="moe-0"):
        await asyncio.wait_for(old.wait_superseded(), 1)
    with pytest.raises(FailedPrecondition, match="worker-id"):
        await old.update(detail="still here")
    await old.close()  # must not delete the new one's lease
    assert await coordination.workers() == [new.lease]
    await new.close()


async def test_garbage_is_skipped_and_logged_once(
    coordination: Coordination, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = await coordination.register(lease())
    client = raw
    for name, text in {
        "a": b"\xff\xfe", "b": b"[]", "c": b"{}", "d": b'{"worker_id": 3}',
        "e": keeper.lease.to_json().replace('"member":', '"member":-').encode(),
        "f": keeper.lease.to_json().replace('"moe"', '"cook"').encode(),
    }.items():  # fmt: skip
        await client.sadd("{janus}:workers", f"moe:{name}")
        await client.set(f"{{janus}}:lease:moe:{name}", text)
    for _ in range(3):
        assert await coordination.workers() == [keeper.lease]
    assert len([r for r in caplog.records if "did not write" in r.message]) == 6
    await client.set("{janus}:cohort", b"null")
    assert await coordination.cohort() is None
    await client.set("{janus}:layout:9", b'{"version": 9, "num_experts": 2, "slots": 1, "placement": 3}')
    assert await coordination.layout(9) is None
    await keeper.close()


async def test_office_is_one_and_fenced(coordination: Coordination, settings: ServiceSettings) -> None:
    first = await coordination.acquire_leader("s-0", 0.3)
    assert first is not None
    assert await coordination.acquire_leader("s-1", 0.3) is None
    assert await coordination.leader() == "s-0"
    await coordination.publish_cohort(cohort(await coordination.next_epoch()), layout(1), first)
    await asyncio.sleep(0.4)  # s-0 sleeps through its office
    assert not await coordination.renew_leader("s-0", first, 0.3)
    with pytest.raises(StaleLeader):  # nobody is in office
        await coordination.publish_cohort(cohort(2), layout(2), first)
    second = await coordination.acquire_leader("s-1", 5)
    assert second is not None and second > first
    await coordination.publish_cohort(cohort(await coordination.next_epoch()), layout(2), second)
    with pytest.raises(StaleLeader, match="another scheduler"):
        await coordination.publish_cohort(cohort(99), layout(99), first)
    assert (await coordination.cohort()) == cohort(2)
    assert await coordination.layout(99) is None
    with pytest.raises(StaleLeader, match="later epoch"):
        await coordination.publish_cohort(cohort(1), layout(1), second)
    await coordination.resign_leader("s-1", second)
    assert await coordination.leader() is None


async def test_epochs_grow_past_what_workers_run(coordination: Coordination) -> None:
    assert [await coordination.next_epoch(), await coordination.next_epoch()] == [1, 2]
    assert await coordination.next_epoch(7) == 8
    assert await coordination.next_epoch() == 9


async def test_old_layouts_go(coordination: Coordination) -> None:
    token = await coordination.acquire_leader("s", 5)
    assert token is not None
    for n in range(1, LAYOUTS_KEPT + 4):
        await coordination.publish_cohort(cohort(n, n), layout(n), token)
        await coordination.publish_cohort(cohort(n, n), layout(n), token)  # again: counted once
    assert await coordination.layout(3) is None
    assert (await coordination.layout(4)) == layout(4)


async def test_watch_gives_the_current_one_then_later_ones_promptly(coordination: Coordination) -> None:
    token = await coordination.acquire_leader("s", 5)
    assert token is not None
    await coordination.publish_cohort(cohort(1), layout(1), token)
    watch = coordination.watch_cohort()
    assert (await asyncio.wait_for(anext(watch), 2)).epoch == 1
    following = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.1)
    start = time.monotonic()
    await coordination.publish_cohort(cohort(2), layout(1), token)
    assert (await asyncio.wait_for(following, 2)).epoch == 2
    assert time.monotonic() - start < 0.5  # by the event, not by the slow poll
    await watch.aclose()


async def test_a_renewal_tells_of_a_cohort_whose_event_was_lost(settings: ServiceSettings, raw: Any) -> None:
    coordination = await Coordination.connect(dataclasses.replace(settings, lease_ttl_s=0.6))
    keeper = await coordination.register(lease())
    watch = coordination.watch_cohort()
    for epoch in (1, 2):
        following = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.3)
        await raw.set("{janus}:cohort", cohort(epoch).to_json())  # and no event
        assert (await asyncio.wait_for(following, 1)) == cohort(epoch)
    await watch.aclose()
    await keeper.close()
    await coordination.close()


async def test_a_look_renews_the_office_and_sees_leases_and_cohort(
    coordination: Coordination, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await coordination.look("s-0", 1, 5) is None
    token = await coordination.acquire_leader("s-0", 0.5)
    assert token is not None
    empty = await coordination.look("s-0", token, 5)
    assert empty is not None and empty.cohort is None and empty.leases == ()
    assert empty.expires_s == float("inf")
    assert await raw.pttl("{janus}:leader") > 4000
    keepers = [await coordination.register(lease(name)) for name in ("moe-1", "moe-0", "moe-2")]
    await coordination.publish_cohort(cohort(3), layout(1), token)
    await raw.sadd("{janus}:workers", "moe:gone", "moe:odd")
    await raw.set("{janus}:lease:moe:odd", b"\xff")
    await raw.pexpire("{janus}:lease:moe:moe-1", 300)
    for _ in range(2):
        seen = await coordination.look("s-0", token, 5)
        assert seen is not None and seen.cohort == cohort(3)
        assert [x.worker_id for x in seen.leases] == ["moe-0", "moe-1", "moe-2"]
        assert list(seen.leases) == await coordination.workers()
        assert 0 <= seen.expires_s <= 0.3
    assert len([r for r in caplog.records if "did not write" in r.message]) == 1
    assert b"moe:gone" not in await raw.smembers("{janus}:workers")
    await keepers[2].update(detail="busy")
    seen = await coordination.look("s-0", token, 5)
    assert seen is not None and seen.leases[2].detail == "busy"
    await raw.delete("{janus}:leader")
    assert await coordination.look("s-0", token, 5) is None
    for keeper in keepers:
        await keeper.close()


async def test_statistics(coordination: Coordination, settings: ServiceSettings, raw: Any) -> None:
    for n in range(5):
        await coordination.report_stats("moe-0", {"steps": n, "moe_seconds": n / 3})
    await raw.xadd("{janus}:stats:moe-0", {"steps": "many"})
    samples = await coordination.read_stats("moe-0")
    assert [s.values["steps"] for s in samples] == [0, 1, 2, 3, 4]
    assert samples[1].values["moe_seconds"] == 1 / 3
    assert abs(samples[0].time_s - time.time()) < 5
    assert await coordination.read_stats("moe-0", window_s=0) == []
    assert await coordination.read_stats("nobody") == []
    for n in range(1200):
        await coordination.report_stats("moe-1", {"steps": n})
    assert len(await coordination.read_stats("moe-1")) < 600


async def test_namespaces_are_apart(coordination: Coordination, settings: ServiceSettings) -> None:
    other = await Coordination.connect(dataclasses.replace(settings, namespace="other"))
    keeper = await coordination.register(lease())
    assert await other.workers() == []
    await keeper.close()
    await other.close()


@pytest.mark.parametrize("url", ["", "http://x", "redis://x:port", "localhost:6379"])
async def test_bad_url(settings: ServiceSettings, url: str) -> None:
    with pytest.raises(InvalidArgument, match="redis-url"):
        await Coordination.connect(dataclasses.replace(settings, redis_url=url))


async def test_password_never_shows() -> None:
    settings = ServiceSettings(redis_url="redis://me:hush@127.0.0.1:1/0", worker_id="x", redis_wait_s=0)
    with pytest.raises(Unavailable) as caught:
        await Coordination.connect(settings)
    assert "hush" not in str(caught.value) and "127.0.0.1:1" in str(caught.value)


async def test_wrong_password_fails_at_once(redis: RedisServer, settings: ServiceSettings, raw: Any) -> None:
    await raw.config_set("requirepass", "right")
    start = time.monotonic()
    with pytest.raises(FailedPrecondition, match="credentials"):
        await Coordination.connect(settings)
    assert time.monotonic() - start < 2


async def test_records_refuse_what_they_do_not_write() -> None:
    good = lease().to_json()
    assert Lease.from_json(good) == lease()
    assert Lease.from_json(good[:-1] + ',"later":1}') == lease()
    for bad in ("", "3", "null", good.replace("127", "\\ud800"), good.replace('"pid":1', '"pid":true')):
        try:
            Lease.from_json(bad)
        except RecordError as error:
            assert "Lease" in str(error)
        else:
            assert "ud800" in bad  # odd text is text
    for bad in ('{"epoch":1}', '{"epoch":1,"attention":[3],"moe":[],"layout_version":1}'):
        with pytest.raises(RecordError, match="CohortRecord"):
            CohortRecord.from_json(bad)


async def test_a_cancellation_that_a_library_swallows_ends_the_keeper_all_the_same() -> None:
    """asyncio.wait_for before Python 3.12 loses a cancellation that coincides with the result."""
    calls = 0

    class Swallows:
        async def script(self, *args: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)
            return 1

    keeper = LeaseKeeper(Swallows(), Keys("janus"), dataclasses.replace(lease(), member=1), 0.1)
    await keeper.start()
    while calls < 2:
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await asyncio.wait_for(keeper.close(), 5)
    assert time.monotonic() - began < 3


async def test_statistics_of_many_workers_at_once_are_those_of_each(coordination: Coordination) -> None:
    names = [f"moe-{i}" for i in range(40)]
    for i, name in enumerate(names[:-1]):
        for n in range(i % 3 + 1):
            await coordination.report_stats(name, {"steps": n, "seconds": 0.1 * i, "none": 0})
    found = await coordination.read_all_stats(names, window_s=60.0)
    assert found == {name: await coordination.read_stats(name, window_s=60.0) for name in names}
    assert len(found["moe-2"]) == 3 and found["moe-2"][2].values["steps"] == 2 and found["moe-39"] == []
    assert await coordination.read_all_stats([]) == {}
