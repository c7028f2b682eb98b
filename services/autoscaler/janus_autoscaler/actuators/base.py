"""What an actuator is, what it may rely on, and in which order sizes change."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import enum
import logging
import time
from collections.abc import Callable

from janus_runtime.coordination import Coordination
from janus_runtime.draining import still_held
from janus_runtime.errors import Unavailable
from janus_runtime.records import Lease, Role
from janus_runtime.settings import ServiceSettings

log = logging.getLogger("janus.autoscaler")

Sizes = tuple[int, int]
"""(attention, MoE)."""
_LOOK_S = 0.2


class Pool(enum.Enum):
    """A pool of workers; its value is its place in Sizes."""

    ATTENTION = 0
    MOE = 1

    @property
    def role(self) -> Role:
        """Of its workers."""
        return (Role.ATTENTION, Role.MOE)[self.value]


class Actuator(abc.ABC):
    """Changes the sizes of pools. A worker is drained before it is stopped: nothing that it serves is lost."""

    @abc.abstractmethod
    async def sizes(self) -> Sizes:
        """Workers that there should be, those starting included and those leaving not. Raises JanusError."""

    @abc.abstractmethod
    async def grow(self, now: Sizes, target: Sizes) -> None:
        """Have as many workers as ``target``, in no pool fewer than ``now``; return when the platform has taken it.

        Raises JanusError.
        """

    @abc.abstractmethod
    async def shrink(self, pool: Pool, size: int) -> None:
        """Drain down to ``size`` workers, one fewer than now; return when it has left. Raises JanusError."""

    async def close(self) -> None:  # noqa: B027 - most have none
        """Let go of connections."""


def next_step(now: Sizes, target: Sizes) -> Sizes:
    """The next sizes on the way: growth first, all of it at once; then one worker less at a time.

    One at a time, so that a rise of demand meanwhile waits for one drain at most. Pure.
    """
    grown = max(now[0], target[0]), max(now[1], target[1])
    if grown != now:
        return grown
    if target[0] < now[0]:
        return now[0] - 1, now[1]
    return now[0], max(target[1], now[1] - 1)


class Drainer:
    """Draining a worker through its own service, for platforms that would only stop it."""

    def __init__(
        self,
        coordination: Coordination,
        settings: ServiceSettings,
        *,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordination, self._settings = coordination, settings
        self._deadline_s, self._clock = deadline_s, clock

    async def leases(self, pool: Pool) -> list[Lease]:
        """Live leases of the pool."""
        return await self._coordination.workers(pool.role)

    async def drain(self, worker_id: str) -> str:
        """Until the worker holds nothing and is asked nothing: ''. At the deadline: what it still held."""
        deadline, held = self._clock() + self._deadline_s, "nothing was heard of it"
        while self._clock() < deadline:
            with contextlib.suppress(Unavailable):  # Redis is away: what runs goes on
                leases = await self._coordination.workers()
                lease = next((w for w in leases if w.worker_id == worker_id), None)
                if lease is None:
                    return ""
                held = await still_held(lease, await self._coordination.cohort(), self._settings)
                if not held:
                    return ""
            await asyncio.sleep(_LOOK_S)
        log.warning("%s was not drained after %g s: %s", worker_id, self._deadline_s, held)
        return held


def worker_on(leases: list[Lease], host: str) -> Lease | None:
    """The worker that runs on ``host``, a container's or pod's name: its id is <role>-<host>-<pid>, or its address."""

    def there(lease: Lease) -> bool:
        own = lease.worker_id.removeprefix(f"{lease.role}-{host}-")
        return own.isdecimal() or lease.grpc_address.rpartition(":")[0] == host

    return next((lease for lease in leases if there(lease)), None)
