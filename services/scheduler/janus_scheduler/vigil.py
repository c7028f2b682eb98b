"""A held stream to each worker: who dies closes its connections within milliseconds; a lease takes seconds. And
questions to those for whom others wait: who is frozen closes nothing, but does not answer either."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from janus_runtime.channel import connect
from janus_runtime.errors import JanusError
from janus_runtime.records import Lease, Role
from janus_runtime.settings import ServiceSettings
from janus_runtime.telemetry import tracer

log = logging.getLogger("janus.scheduler")

_PAUSE_S = 1.0
_PROBE_S = 1.0
_ANSWER_S = 1.0
"""A process that runs answers a question within this, on a busy machine too."""
_AGAIN_S = 0.25
_WITNESSES = 2


class Vigil:
    """Watches the health of attention and MoE workers that have a lease, over gRPC.

    A stream that breaks says little: networks break too. The worker is dead only when its port, which answered
    before, now refuses; then its lease is deleted, and the cohort that forms without it need not wait for it to
    expire. A worker that others wait for (:meth:`question`) is asked, and so are those who wait: it is silent when
    it does not answer and one of them does, until it answers. All else is left to the lease. Costs a keepalive ping
    per worker in 20 s.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        bury: Callable[[Lease], Awaitable[None]],
        on_dead: Callable[[int], None] = lambda member: None,
        on_silent: Callable[[int, bool], None] = lambda member, silent: None,
    ) -> None:
        """``bury``: delete the lease of this incarnation (:meth:`Coordination.bury`). ``on_dead`` hears of its end
        first, also while Redis is away; ``on_silent`` of a member that is silent, and that it is so no more."""
        self._settings = settings
        self._bury = bury
        self._on_dead = on_dead
        self._on_silent = on_silent
        self._held: dict[int, asyncio.Task[None]] = {}
        self._addresses: dict[int, str] = {}
        self._asked: dict[int, asyncio.Task[None]] = {}

    def follow(self, leases: Iterable[Lease], members: Collection[int] = ()) -> None:
        """Hold a stream to exactly these; those of other roles are left out. Who is followed and among the ``members``
        of the cohort stays so without a lease: a Redis that comes back empty says nothing of who lives."""
        wanted = {w.member: w for w in leases if w.role in (Role.ATTENTION, Role.MOE) and w.grpc_address}
        for member in [m for m in self._held if m not in wanted and m not in members]:
            self._held.pop(member).cancel()
            self._addresses.pop(member, None)
        for member, lease in wanted.items():
            if member not in self._held:
                self._addresses[member] = lease.grpc_address
                self._held[member] = asyncio.create_task(self._hold(lease), name=f"vigil {lease.worker_id}")

    async def close(self) -> None:
        """Let go of all."""
        tasks = [*self._held.values(), *self._asked.values()]
        for task in self._asked.values():
            task.cancel()
        self.follow(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self, lease: Lease) -> None:
        answered = False
        while True:
            began = time.time_ns()
            async with connect(lease.grpc_address, self._settings) as channel:
                try:
                    stub = health_pb2_grpc.HealthStub(channel)
                    async for _ in stub.Watch(health_pb2.HealthCheckRequest()):
                        answered = True
                    cause = "the stream ended"
                except grpc.aio.AioRpcError as error:
                    cause = error.details() or error.code().name
            if answered and await refuses(lease.grpc_address):
                await self._lost(lease, cause, began)
                return
            await asyncio.sleep(_PAUSE_S)

    def question(self, members: Iterable[int], witnesses: Iterable[int]) -> None:
        """The ``witnesses`` wait for these members of a step: find out who of them does not answer."""
        others = list(witnesses)
        for member in members:
            if member in self._addresses and member not in self._asked:
                who = [w for w in others if w != member][:_WITNESSES]
                self._asked[member] = asyncio.create_task(self._ask(member, who))

    async def _ask(self, member: int, witnesses: Sequence[int]) -> None:
        silent = False
        try:
            while member in self._addresses:
                answers, *others = await asyncio.gather(*map(self._answers, (member, *witnesses)))
                if answers:
                    return
                # Where nobody answers it is this process or the machine that is slow.
                if not silent and any(others):
                    silent = True
                    self._on_silent(member, True)
                await asyncio.sleep(_AGAIN_S)
        finally:
            del self._asked[member]
            if silent:
                self._on_silent(member, False)

    async def _answers(self, member: int) -> bool:
        address = self._addresses.get(member, "")
        if not address:
            return False
        try:
            async with connect(address, self._settings) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as error:
            # Any answer of its own is one.
            return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        return True

    async def _lost(self, lease: Lease, cause: str, began: int) -> None:
        log.warning(
            "%s (member %d, pid %d at %s) is dead: its connection closed (%s) and its port refuses; its lease goes now",
            lease.worker_id, lease.member, lease.pid, lease.grpc_address, cause,
        )  # fmt: skip
        attributes: dict[str, str | int] = {
            "janus.worker": lease.worker_id,
            "janus.member": lease.member,
            "janus.cause": cause,
        }
        tracer().start_span("worker.lost", attributes=attributes, start_time=began).end()
        self._addresses.pop(lease.member, None)  # who is dead is not asked
        self._on_dead(lease.member)
        try:
            await self._bury(lease)
        except JanusError as error:
            log.warning("the lease of %s expires by itself: %s", lease.worker_id, error)


async def refuses(address: str) -> bool:
    """Whether nobody listens at ``host:port``, said by its host; False when that cannot be told."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return False
