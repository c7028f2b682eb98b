"""Redis goes away, freezes, comes back empty: what runs goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import signal
import time
from pathlib import Path

import pytest
from janus_runtime._redis import RedisCalls
from janus_runtime.coordination import Coordination
from janus_runtime.errors import Unavailable
from janus_runtime.records import CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings
from janus_runtime.startup import Startup

pytestmark = pytest.mark.asyncio


def settings_for(server: RedisServer) -> ServiceSettings:
    return ServiceSettings(redis_url=server.url, worker_id="x", redis_wait_s=5, lease_ttl_s=1.5)


def lease() -> Lease:
    return Lease(worker_id="moe-0", member=0, role=Role.MOE, pid=1, grpc_address="a:1")


def records(epoch: int) -> tuple[CohortRecord, LayoutRecord]:
    return (
        CohortRecord(epoch=epoch, attention=(), moe=(), layout_version=1),
        LayoutRecord(version=1, num_experts=1, slots=1, placement=(((0,),),)),
    )


async def test_lease_comes_back_with_an_empty_redis(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    coordination = await Coordination.connect(settings_for(server))
    keeper = await coordination.register(lease())
    server.stop()
    await keeper.update(state=WorkerState.READY)  # does not raise
    with pytest.raises(Unavailable, match="REDIS_URL"):
        await coordination.workers()
    await asyncio.sleep(0.5)
    server = RedisServer.start(tmp_path)
    deadline = time.monotonic() + 5
    while not (found := await coordination.workers()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert found == [keeper.lease] and found[0].state is WorkerState.READY
    await keeper.close()
    await coordination.close()
    server.stop()


async def test_a_lease_that_an_empty_redis_lost_is_written_before_it_is_due(tmp_path: Path) -> None:
    """A process that listens to events hears that Redis went and came; its lease was due only 20 s later."""
    server = RedisServer.start(tmp_path)
    coordination = await Coordination.connect(dataclasses.replace(settings_for(server), lease_ttl_s=60))
    await coordination.register(lease())
    with coordination.watch_events("cohort") as watcher:
        await watcher.wait(2.0)  # it listens
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        began = time.monotonic()
        server = RedisServer.start(tmp_path)
        while not await coordination.workers():
            assert time.monotonic() < began + 5
            await asyncio.sleep(0.02)
    await coordination.close()
    server.stop()


async def test_keeper_closes_without_redis(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    coordination = await Coordination.connect(settings_for(server))
    keeper = await coordination.register(lease())
    server.stop()
    await asyncio.wait_for(keeper.close(), 5)
    await asyncio.wait_for(coordination.close(), 5)


async def test_watch_cohort_outlives_redis(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    coordination = await Coordination.connect(settings_for(server))
    token = await coordination.acquire_leader("s", 60)
    assert token is not None
    await coordination.publish_cohort(*records(1), token)
    watch = coordination.watch_cohort()
    assert (await anext(watch)).epoch == 1
    following = asyncio.ensure_future(anext(watch))
    server.stop()
    await asyncio.sleep(0.5)
    server = RedisServer.start(tmp_path)  # empty
    await asyncio.sleep(1.5)
    assert not following.done()
    token = await coordination.acquire_leader("s", 60)
    assert token is not None
    start = time.monotonic()
    await coordination.publish_cohort(*records(1), token)  # the same again: no news
    await asyncio.sleep(0.2)
    assert not following.done()
    await coordination.publish_cohort(*records(2), token)
    assert (await asyncio.wait_for(following, 3)).epoch == 2
    assert time.monotonic() - start < 2  # the subscription is back
    await watch.aclose()
    await coordination.close()
    server.stop()


async def test_calls_to_a_frozen_redis_time_out(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    calls = RedisCalls(server.url, timeout_s=0.2)
    await calls.call("ping", calls.client.ping)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(Unavailable, match="read x"):
            await calls.call("read x", lambda: calls.client.get("x"))
        assert time.monotonic() - start < 1
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await calls.call("ping", calls.client.ping)
    await calls.close()
    server.stop()


async def test_connect_waits_saying_so_then_gives_up(tmp_path: Path) -> None:
    out = io.StringIO()
    settings = ServiceSettings(redis_url=f"unix://{tmp_path}/none.sock", worker_id="moe-0", redis_wait_s=0.4)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"none\.sock.*waited 0\.4 s.*Start Redis"):
        await Coordination.connect(settings, Startup("moe", "moe-0", stream=out))
    assert 0.3 < time.monotonic() - start < 2
    assert out.getvalue().startswith(f"[waiting] moe-0: Redis at unix://{tmp_path}/none.sock (0s)\n")


async def test_connect_succeeds_once_redis_is_there(tmp_path: Path) -> None:
    settings = ServiceSettings(redis_url=f"unix://{tmp_path}/redis.sock", worker_id="moe-0", redis_wait_s=10)
    out = io.StringIO()
    connecting = asyncio.ensure_future(Coordination.connect(settings, Startup("moe", "moe-0", stream=out)))
    await asyncio.sleep(0.3)
    with RedisServer.start(tmp_path):
        coordination = await asyncio.wait_for(connecting, 5)
        assert await coordination.workers() == []
        await coordination.close()
    assert dataclasses.replace(settings) == settings
