"""Of several autoscalers one acts: the office changes hands, and nobody acts without it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from janus_autoscaler.office import Office
from janus_models.tiny import make_tiny
from janus_runtime.coordination import Coordination
from janus_runtime.errors import Unavailable
from janus_runtime.redis_server import RedisServer

pytestmark = pytest.mark.asyncio


async def test_one_is_in_office_and_a_standby_takes_over(coordination: Coordination) -> None:
    first, second = (Office(coordination, name, 30.0) for name in ("autoscaler-0", "autoscaler-1"))
    assert not first.held
    for office in (first, second, first, second):
        await office.turn()
    assert first.held and not second.held
    assert first.holder == second.holder == "autoscaler-0"
    assert await coordination.leader() is None, "the scheduler's office is another"
    await first.resign()
    assert not first.held
    await second.turn()
    assert second.held
    await first.turn()
    assert not first.held and first.holder == "autoscaler-1"


async def test_it_stops_acting_before_another_may(
    coordination: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    heard = []

    async def hear() -> None:
        heard.append(first.holder)

    first = Office(coordination, "autoscaler-0", 0.5, clock=lambda: now)
    first.on_change = hear
    second = Office(coordination, "autoscaler-1", 30.0)
    await first.turn()
    assert first.held
    now += 0.39
    assert first.held
    now += 0.02
    assert not first.held, "0.41 of 0.5 s without a renewal"
    await first.turn()
    assert first.held
    await asyncio.sleep(0.6)  # Redis' clock
    await second.turn()
    assert second.held
    await first.turn()
    assert not first.held and heard == ["autoscaler-0", "autoscaler-1"]

    async def away(*args: object, **more: object) -> int:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(coordination, "acquire_leader", away)
    await first.turn()
    assert not first.held and first.holder == "", "nobody knows"


async def test_processes(redis: RedisServer, coordination: Coordination, tmp_path: Path) -> None:
    """The one in office is killed: its standby is in office as soon as the lease has expired."""
    model = make_tiny(tmp_path / "model", family="qwen3_moe", seed=1)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JANUS_", "OTEL_"))}
    environment = {**kept, "REDIS_URL": redis.url, "JANUS_LEASE_TTL_S": "1.5"}
    command = [sys.executable, "-m", "janus_autoscaler", "--model", str(model), "--mode", "act"]
    started = []

    async def details(*expected: str) -> None:
        found: list[str] = []
        try:
            async with asyncio.timeout(30):
                while found != list(expected):
                    await asyncio.sleep(0.05)
                    leases = sorted(await coordination.workers("autoscaler"), key=lambda w: w.worker_id)
                    found = [lease.detail.partition(",")[0] for lease in leases]
        except TimeoutError:
            pytest.fail(f"{found}, expected {expected}")

    try:
        for i, expected in enumerate(
            [["acting through keda"], ["acting through keda", "standing by for autoscaler-0"]]
        ):
            flags = ["--actuator", "keda", "--worker-id", f"autoscaler-{i}"]
            started.append(subprocess.Popen([*command, *flags], env=environment, stderr=subprocess.DEVNULL))
            await details(*expected)
        started[0].send_signal(signal.SIGKILL)
        await details("acting through keda")
        assert await coordination.leader(scaler=True) == "autoscaler-1"
        started[1].terminate()
        await asyncio.to_thread(started[1].wait, 20)
        assert await coordination.leader(scaler=True) is None, "resigned"
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
