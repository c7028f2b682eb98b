"""KEDA acts: it asks for the sizes decided on (janus_autoscaler.keda) and sets the workloads' replicas.

Which pods go is the platform's choice, and they learn of it by SIGTERM: workers have to drain themselves then
(JANUS_DRAIN_S).
"""

from __future__ import annotations

from janus_autoscaler.actuators.base import Actuator, Drainer, Pool, Sizes


class KedaActuator(Actuator):
    """Remembers the sizes decided on; before the first decision they are the mesh's own."""

    def __init__(self, drainer: Drainer) -> None:
        self._drainer = drainer
        self._sizes: list[int] = []

    async def sizes(self) -> Sizes:
        if not self._sizes:
            found = [len(await self._drainer.leases(pool)) for pool in Pool]
            if not all(found):
                return found[0], found[1]
            self._sizes = found
        return self._sizes[0], self._sizes[1]

    async def grow(self, now: Sizes, target: Sizes) -> None:
        self._sizes = list(target)

    async def shrink(self, pool: Pool, size: int) -> None:
        self._sizes[pool.value] = size
