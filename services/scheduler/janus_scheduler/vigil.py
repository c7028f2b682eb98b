"""A held stream to each worker: who dies closes its connections within milliseconds; a lease takes seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable

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


class Vigil:
    """Watches the health of attention and MoE workers that have a lease, over gRPC.

    A stream that breaks says little: networks break too. The worker is dead only when its port, which answered
    before, now refuses; then its lease is deleted, and the cohort that forms without it need not wait for it to
    expire. All else (a cut, a frozen host) is left to the lease. Costs a keepalive ping per worker in 20 s.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        bury: Callable[[Lease], Awaitable[None]],
        on_dead: Callable[[int], None] = lambda member: None,
    ) -> None:
        """``bury``: delete the lease of this incarnation (:meth:`Coordination.bury`). ``on_dead`` hears of its end
        first, also while Redis is away."""
        self._settings = settings
        self._bury = bury
        self._on_dead = on_dead
        self._held: dict[int, asyncio.Task[None]] = {}

    def follow(self, leases: Iterable[Lease], members: Collection[int] = ()) -> None:
        """Hold a stream to exactly these; those of other roles are left out. Who is followed and among the ``members``
        of the cohort stays so without a lease: a Redis that comes back empty says nothing of who lives."""
        wanted = {w.member: w for w in leases if w.role in (Role.ATTENTION, Role.MOE) and w.grpc_address}
        for member in [m for m in self._held if m not in wanted and m not in members]:
            self._held.pop(member).cancel()
        for member, lease in wanted.items():
            if member not in self._held:
                self._held[member] = asyncio.create_task(self._hold(lease), name=f"vigil {lease.worker_id}")

    async def close(self) -> None:
        """Let go of all."""
        tasks = list(self._held.values())
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
