"""Docker Swarm: replicas of services, through the engine's SDK.

Which task ends is Swarm's choice, and it learns of it by SIGTERM: workers have to drain themselves then
(JANUS_DRAIN_S, below the service's stop grace period).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from janus_runtime.errors import DeadlineExceeded, FailedPrecondition

from janus_autoscaler.actuators.base import Actuator, Pool, Sizes
from janus_autoscaler.actuators.compose import ask, engine
from janus_autoscaler.config import AutoscalerSettings

_LOOK_S = 0.5


class SwarmActuator(Actuator):
    """Services of one stack."""

    def __init__(self, settings: AutoscalerSettings, client: Any = None) -> None:
        self._client = client or engine(settings.docker_url)
        stack = settings.docker_project
        self._names = {
            Pool.ATTENTION: f"{stack}_{settings.attention_service}",
            Pool.MOE: f"{stack}_{settings.moe_service}",
        }
        self._deadline_s = settings.drain_deadline_s

    async def sizes(self) -> Sizes:
        found = [self._replicas(await self._service(pool)) for pool in Pool]
        return found[0], found[1]

    async def grow(self, now: Sizes, target: Sizes) -> None:
        for pool in Pool:
            if target[pool.value] > now[pool.value]:
                await self._scale(pool, target[pool.value])

    async def _scale(self, pool: Pool, size: int) -> None:
        service = await self._service(pool)
        await ask(lambda: service.scale(size))

    async def shrink(self, pool: Pool, size: int) -> None:
        await self._scale(pool, size)
        # Until the tasks that are to end have: what comes next must not take them for serving.
        deadline = time.monotonic() + self._deadline_s
        while (running := await self._running(pool)) > size:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{running} tasks of {self._names[pool]} still run, {size} are wanted",
                    next_step="`docker service ps` says why.",
                )
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    async def _service(self, pool: Pool) -> Any:
        return await ask(lambda: self._client.services.get(self._names[pool]))

    async def _running(self, pool: Pool) -> int:
        service = await self._service(pool)
        tasks = await ask(service.tasks)
        return sum(t["Status"]["State"] == "running" for t in tasks)

    @staticmethod
    def _replicas(service: Any) -> int:
        mode = service.attrs["Spec"]["Mode"]
        if "Replicated" not in mode:
            raise FailedPrecondition(
                f"service {service.name} is not replicated ({', '.join(mode)}): it has no size to set"
            )
        return int(mode["Replicated"]["Replicas"])
