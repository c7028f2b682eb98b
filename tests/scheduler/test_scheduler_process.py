"""The scheduler as the process a supervisor starts."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from janus_runtime.coordination import Coordination
from janus_runtime.records import Lease, WorkerState
from janus_runtime.redis_server import RedisServer


def start(*args: str, url: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JANUS_", "OTEL_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "janus_scheduler", "--worker-id", "scheduler-0", *args],
        env={**environment, "REDIS_URL": url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 20) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return process.returncode, err


def test_redis_unreachable_exits_1_after_the_wait(tmp_path: Path) -> None:
    start_time = time.monotonic()
    code, err = finish(start("--redis-wait-s", "0.5", url=f"unix://{tmp_path}/none.sock"))
    assert code == 1 and time.monotonic() - start_time < 10
    assert err.splitlines()[0] == f"[waiting] scheduler-0: Redis at unix://{tmp_path}/none.sock (0s)"
    assert err.splitlines()[-1].startswith("error: Redis at unix://") and "waited 0.5 s" in err
    assert "Traceback" not in err


def test_port_in_use_exits_1_naming_it(redis: RedisServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = finish(start("--grpc-port", str(port), url=redis.url))
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: scheduler: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in err


@pytest.mark.asyncio
async def test_runs_publishes_and_leaves_nothing(
    redis: RedisServer, coordination: Coordination, ready: Callable[..., Lease]
) -> None:
    process = start("--min-experts", "2", url=redis.url)
    try:
        watch = coordination.watch_cohort()
        first = asyncio.ensure_future(anext(watch))
        for name in ("attention-0", "moe-0", "moe-1"):
            await coordination.register(ready(name))
        assert (await asyncio.wait_for(first, 15)).epoch == 1
        (lease,) = await coordination.workers("scheduler")
        assert lease.pid == process.pid and lease.state is WorkerState.READY
        await watch.aclose()
    finally:
        process.terminate()
        code, err = finish(process)
    assert code == 0, err
    assert "[ready] scheduler-0: gRPC at 127.0.0.1:" in err and "Traceback" not in err
    assert await coordination.workers("scheduler") == []
    assert await coordination.leader() is None


@pytest.mark.asyncio
async def test_a_second_process_of_the_same_name_takes_over(
    redis: RedisServer, coordination: Coordination
) -> None:
    first = start(url=redis.url)
    await until_registered(coordination, first.pid)
    second = start(url=redis.url)
    await until_registered(coordination, second.pid)
    code, err = finish(first)
    assert code == 1 and "another process has registered as scheduler-0" in err.splitlines()[-1]
    second.terminate()
    assert finish(second)[0] == 0


async def until_registered(coordination: Coordination, pid: int) -> None:
    async with asyncio.timeout(15):
        while [w.pid for w in await coordination.workers("scheduler")] != [pid]:
            await asyncio.sleep(0.05)
