"""The control process: a fault that no new cohort heals ends the worker, so that it comes back as a new member."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from janus_runtime.errors import Unavailable
from janus_runtime.records import Role
from janus_runtime.server import GrpcServer
from janus_worker import host as module
from janus_worker.host import WorkerHost
from janus_worker.link import ChildGone, Message
from janus_worker.settings import WorkerSettings


class FakeEngine:
    """Says what the test wants, then ends."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self._bodies = list(bodies)

    async def receive(self) -> Message:
        if not self._bodies:
            raise ChildGone("engine (pid 1) ended with exit status 0")
        return Message(self._bodies.pop(0))


class Host(WorkerHost[WorkerSettings]):
    role = Role.MOE
    engine_module = "none"

    def fingerprint(self) -> str:
        return "x"

    def engine_options(self) -> dict[str, Any]:
        return {}

    def add_services(self, server: GrpcServer) -> None:
        pass

    def lease_fields(self) -> dict[str, Any]:
        return {}

    left = 0.0

    async def _run(self) -> None:
        await asyncio.Event().wait()

    async def leave(self) -> None:
        await asyncio.sleep(self.left)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(module, "_FAULT_S", 0.05)
    return Host(WorkerSettings(worker_id="moe-0", lease_ttl_s=0.05))


async def say(host: Host, *bodies: dict[str, Any]) -> None:
    with pytest.raises(ChildGone):
        await host._read_engine(FakeEngine(*bodies))  # type: ignore[arg-type]


@pytest.fixture
def leases(host: Host, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Members that have a lease."""
    members = {3}

    async def has_lease(member: int) -> bool:
        return member in members

    monkeypatch.setattr(host, "_has_lease", has_lease)
    return members


async def test_a_fault_without_a_new_cohort_ends_the_worker(host: Host, leases: set[int]) -> None:
    await say(host, {"t": "fault", "member": 3, "reason": "attention-1 is gone"})
    with pytest.raises(Unavailable, match=r"attention-1 is gone, yet no new cohort came"):
        async with asyncio.timeout(5):
            await host._watch_faults()


async def test_a_peer_that_is_gone_is_waited_for(host: Host, leases: set[int]) -> None:
    leases.clear()
    watch = asyncio.create_task(host._watch_faults())
    await say(host, {"t": "fault", "member": 3, "reason": "attention-1 is gone"})
    done, _ = await asyncio.wait({watch}, timeout=0.5)
    assert not done
    leases.add(3)  # it was a link that broke, or Redis was away
    with pytest.raises(Unavailable, match="attention-1 is gone"):
        async with asyncio.timeout(5):
            await watch


async def test_a_new_cohort_heals_it(host: Host, leases: set[int]) -> None:
    watch = asyncio.create_task(host._watch_faults())
    await say(host, {"t": "fault", "member": 3, "reason": "attention-1 is gone"})
    await asyncio.sleep(0.02)
    host._sent_epoch += 1
    done, _ = await asyncio.wait({watch}, timeout=0.5)
    assert not done
    watch.cancel()


async def test_statistics_and_hello_are_kept(host: Host) -> None:
    await say(
        host, {"t": "hello", "address": "00", "transport": "ucx"}, {"t": "stats", "stats": {"steps": 4.0}}
    )
    assert host.hello["transport"] == "ucx" and host.stats == {"steps": 4.0}


async def test_a_failed_engine_gives_its_reason(host: Host) -> None:
    with pytest.raises(Exception, match=r"truncated\.safetensors is cut short"):
        await host._read_engine(FakeEngine({"t": "failed", "message": "truncated.safetensors is cut short"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("told", "least", "most"), [(0.1, 0.1, 0.25), (None, 0.3, 0.6)])
async def test_one_that_has_drained_finishes_the_step_that_others_finish_with_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, told: float | None, least: float, most: float
) -> None:
    """The cohort in force is without it, and it is told to stop; its engine may be amid a step of the one before."""
    monkeypatch.setattr(module, "_LAST_STEP_S", 0.3)
    await say(host, {"t": "epoch", "epoch": 3, "rank": 0, "layout_version": 1})
    host._ready.set()
    host.draining = True
    task = asyncio.create_task(host.run())
    await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    task.cancel()
    if told is not None:
        await asyncio.sleep(told)
        await say(host, {"t": "waiting", "detail": "a cohort: this worker is not in epoch 4"})
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and least - 0.05 <= asyncio.get_running_loop().time() - began < most


@pytest.mark.parametrize(
    ("drain_s", "left", "least", "most"), [(0.0, 9.0, 0.0, 0.15), (5.0, 0.2, 0.2, 2.0), (0.2, 9.0, 0.2, 2.0)]
)
async def test_told_to_stop_it_drains_first_but_no_longer_than_it_may(
    drain_s: float, left: float, least: float, most: float
) -> None:
    host = Host(WorkerSettings(worker_id="moe-0", drain_s=drain_s))
    host.left, host._sent_epoch = left, 1
    task = asyncio.create_task(host.run())
    await asyncio.sleep(0.05)
    began = asyncio.get_running_loop().time()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled() and least - 0.05 <= asyncio.get_running_loop().time() - began < most
