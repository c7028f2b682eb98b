"""The attention workers of the cohort in force: who they are, how loaded, how to reach them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass, field

import grpc
from janus_runtime.channel import connect
from janus_runtime.coordination import Coordination
from janus_runtime.errors import JanusError, Unavailable
from janus_runtime.records import CohortMember, CohortRecord, Lease, Role, WorkerState
from janus_wire.v1 import attention_pb2_grpc

from janus_gateway.config import GatewaySettings
from janus_gateway.routing import Candidate, choose

log = logging.getLogger("janus.gateway")

LEASES_FRESH_S = 0.5
"""Leases are read again when a request comes and they are older than this; never while idle."""
BACKOFF_S = (0.1, 2.0)
"""A worker that failed is avoided this long, doubling from the first to the second."""


@dataclass(slots=True, kw_only=True)
class Target:
    """One attention worker and what this gateway knows of it."""

    worker: CohortMember
    channel: grpc.aio.Channel
    in_flight: int = 0
    reported: int = 0
    reported_own: int = 0
    usable: bool = True
    failures: int = 0
    retry_at: float = 0.0
    current: bool = True
    """In the cohort in force."""
    calls: set[grpc.aio.Call] = field(default_factory=set)
    """Under way."""
    stub: attention_pb2_grpc.AttentionServiceStub = field(init=False)

    def __post_init__(self) -> None:
        self.stub = attention_pb2_grpc.AttentionServiceStub(self.channel)

    def failed(self) -> None:
        """Avoid it for a while."""
        self.retry_at = time.monotonic() + min(BACKOFF_S[0] * 2**self.failures, BACKOFF_S[1])
        self.failures += 1

    def succeeded(self) -> None:
        """It answered."""
        self.failures, self.retry_at = 0, 0.0


class WorkerPool:
    """Follows the cohort record; :meth:`acquire` and :meth:`release` bracket a sequence's stay."""

    def __init__(self, coordination: Coordination, settings: GatewaySettings) -> None:
        self._coordination = coordination
        self._settings = settings
        self._targets: dict[int, Target] = {}
        self._turn = itertools.count()
        self._changed = asyncio.Event()
        self._leases: list[Lease] = []
        self._leases_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.cohort: CohortRecord | None = None

    async def run(self) -> None:
        """Follow the cohort until cancelled."""
        async for cohort in self._coordination.watch_cohort():
            self._adopt(cohort)

    def _adopt(self, cohort: CohortRecord) -> None:
        members = {worker.member: worker for worker in cohort.attention}
        for number, target in list(self._targets.items()):
            target.current = number in members
            if target.current:
                continue
            if not target.in_flight:
                self._forget(number)
            elif target.calls:
                # It steps no more, dead or not: frozen, or cut off, it would not even say so.
                name = target.worker.worker_id
                log.warning("%s left the cohort: %d streams go on elsewhere", name, len(target.calls))
                for call in target.calls:
                    call.cancel()
        for number, worker in members.items():
            if number not in self._targets:
                channel = connect(worker.grpc_address, self._settings)
                self._targets[number] = Target(worker=worker, channel=channel)
        self.cohort = cohort
        self._leases_at = float("-inf")
        log.info("cohort epoch %d: %d attention workers", cohort.epoch, len(members))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _forget(self, number: int) -> None:
        closing = asyncio.ensure_future(self._targets.pop(number).channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def unready(self) -> list[str]:
        """Why no request can be served now; empty: it can."""
        if self.cohort is None:
            return ["no cohort has formed: waiting for the scheduler, attention workers and MoE workers"]
        if not self.cohort.attention:
            return [f"cohort epoch {self.cohort.epoch} has no attention worker"]
        return []

    def members(self) -> set[int]:
        """Numbers of the attention workers in the cohort in force."""
        return {number for number, target in self._targets.items() if target.current}

    def in_flight(self, member: int) -> int:
        """Sequences that this gateway has at a worker."""
        target = self._targets.get(member)
        return 0 if target is None else target.in_flight

    async def acquire(self, deadline: float, *, patient: bool = False) -> Target:
        """The least loaded worker, its ``in_flight`` counted up; waits while all are to be avoided.

        ``deadline``: monotonic. Raises Unavailable at it, and while the cohort has no worker: at once, or
        at the deadline when ``patient``.
        """
        while True:
            reasons = self.unready()
            if reasons and patient and time.monotonic() < deadline:
                await self._wait_for_change(deadline - time.monotonic())
                continue
            if reasons:
                raise Unavailable(
                    reasons[0],
                    reason="NO_COHORT",
                    retry_after_s=1.0,
                    next_step="Wait until /health/ready answers 200; `janus status` shows what is missing.",
                )
            self._refresh_leases()
            now = time.monotonic()
            candidates = [self._candidate(t) for t in self._targets.values() if t.current]
            chosen = choose(candidates, now, next(self._turn))
            if chosen is not None:
                target = self._targets[chosen.member]
                target.in_flight += 1
                return target
            await self._wait_for_change(min(*(c.retry_at for c in candidates), deadline) - now)
            if time.monotonic() >= deadline:
                names = ", ".join(t.worker.worker_id for t in self._targets.values() if t.current)
                raise Unavailable(
                    f"no attention worker of the cohort answers ({names})",
                    reason="WORKERS_UNREACHABLE",
                    retry_after_s=1.0,
                    next_step="See the workers' logs; the scheduler forms a new cohort without them.",
                )

    def release(self, target: Target) -> None:
        """The sequence has left the worker."""
        target.in_flight -= 1
        number = target.worker.member
        if not target.current and not target.in_flight and self._targets.get(number) is target:
            self._forget(number)

    def _candidate(self, target: Target) -> Candidate:
        return Candidate(
            member=target.worker.member,
            in_flight=target.in_flight,
            reported=target.reported,
            reported_own=target.reported_own,
            usable=target.usable,
            retry_at=target.retry_at,
        )

    async def _wait_for_change(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._changed.wait()
        except TimeoutError:
            pass  # the caller looks again

    # -- leases ---------------------------------------------------------------------------------------

    async def leases(self) -> list[Lease]:
        """Every worker's lease, at most LEASES_FRESH_S old while Redis answers."""
        task = self._refresh_leases()
        if task is not None:
            await asyncio.shield(task)
        return self._leases

    def _refresh_leases(self) -> asyncio.Task[None] | None:
        # Routing does not wait for it: Redis may be away, and what is known here is nearly all that matters.
        if time.monotonic() - self._leases_at >= LEASES_FRESH_S and (
            self._reading is None or self._reading.done()
        ):
            self._reading = asyncio.get_running_loop().create_task(self._read_leases(), name="janus-leases")
        return self._reading if self._reading is not None and not self._reading.done() else None

    async def _read_leases(self) -> None:
        self._leases_at = time.monotonic()
        try:
            self._leases = await self._coordination.workers()
        except JanusError as error:
            log.debug("leases could not be read, routing by what is in flight here: %s", error)
            for target in self._targets.values():
                target.usable = True
            return
        found = {lease.member: lease for lease in self._leases if lease.role is Role.ATTENTION}
        for number, target in self._targets.items():
            lease = found.get(number)
            target.usable = lease is not None and lease.state is not WorkerState.DRAINING
            target.reported = 0 if lease is None else lease.running + lease.waiting
            target.reported_own = min(target.in_flight, target.reported)

    async def close(self) -> None:
        """Close every channel."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for number in list(self._targets):
            self._forget(number)
        await asyncio.gather(*self._closing)
