"""What Redis says of a mesh: leases and the cohort, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortRecord, Lease, Role, WorkerState
from janus_runtime.settings import ServiceSettings
from janus_runtime.startup import Startup


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshView:
    """One look at the coordination state."""

    leases: tuple[Lease, ...] = ()
    cohort: CohortRecord | None = None

    def of(self, role: Role) -> list[Lease]:
        """Leases of one role, by index."""
        return sorted((x for x in self.leases if x.role is role), key=lambda x: worker_index(x.worker_id))

    def get(self, worker_id: str) -> Lease | None:
        """The lease of one worker."""
        return next((x for x in self.leases if x.worker_id == worker_id), None)

    @property
    def gateway(self) -> Lease | None:
        """The first gateway."""
        return next(iter(self.of(Role.GATEWAY)), None)

    def member_of_cohort(self, lease: Lease) -> bool:
        """True when the cohort in force names this incarnation and the worker runs its epoch."""
        cohort = self.cohort
        if cohort is None or lease.epoch != cohort.epoch or lease.state is not WorkerState.READY:
            return False
        return any(m.member == lease.member for m in (*cohort.attention, *cohort.moe))


def worker_index(worker_id: str) -> int:
    """3 of ``moe-3``; -1 when the name ends in no number."""
    tail = worker_id.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


def service_rows(view: MeshView) -> list[dict[str, Any]]:
    """``{"role", "index", "worker_id", "pid", "address", ...}`` of each lease, for --json."""
    return [
        {
            "role": lease.role.value,
            "index": worker_index(lease.worker_id),
            "worker_id": lease.worker_id,
            "pid": lease.pid,
            "engine_pid": lease.engine_pid,
            "address": lease.grpc_address,
            "http": lease.http_address,
            "state": lease.state.value,
            "epoch": lease.epoch,
            "node": lease.node,
            "detail": lease.detail,
            "running": lease.running,
            "waiting": lease.waiting,
            "slots": lease.slots,
        }
        for role in Role
        for lease in view.of(role)
    ]


async def look(coordination: Coordination) -> MeshView:
    """Read leases and cohort now. Raises Unavailable when Redis is away."""
    return MeshView(leases=tuple(await coordination.workers()), cohort=await coordination.cohort())


async def look_at(redis_url: str, namespace: str, *, wait_s: float = 2.0) -> MeshView:
    """Connect, look, disconnect."""
    coordination = await connect(redis_url, namespace, wait_s=wait_s)
    try:
        return await look(coordination)
    finally:
        await coordination.close()


async def connect(redis_url: str, namespace: str, *, wait_s: float = 2.0) -> Coordination:
    """A Coordination that only reads; Unavailable after ``wait_s``."""
    settings = ServiceSettings(
        redis_url=redis_url, namespace=namespace, redis_wait_s=wait_s, worker_id="janus"
    )
    return await Coordination.connect(settings, Startup("cli", "janus"))
