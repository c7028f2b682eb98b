"""The autoscalers' office: of those that could act, one does; another takes over when it is gone.

A platform knows no fencing token. So whoever is in office by its own clock acts, and stops before Redis would give the
office to another: it asks before each step, not once per decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from janus_runtime.coordination import Coordination
from janus_runtime.errors import JanusError

log = logging.getLogger("janus.autoscaler")

_SURE = 0.8
"""Share of the time to live for which an office counts as held after it was renewed."""


class Office:
    """Run :meth:`keep`, ask :attr:`held`."""

    def __init__(
        self,
        coordination: Coordination,
        worker_id: str,
        ttl_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordination, self._worker_id, self._ttl_s = coordination, worker_id, ttl_s
        self._clock = clock
        self.on_change: Callable[[], Awaitable[None]] | None = None
        """Hears of every change of who is in office."""
        self._token: int | None = None
        self._until = 0.0
        self.holder = ""
        """Worker id of who is in office, as last seen; '' when that is not known."""

    @property
    def held(self) -> bool:
        """Whether this autoscaler may act now."""
        return self._token is not None and self._clock() < self._until

    async def keep(self) -> None:
        """Hold the office or stand by for it, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(self._ttl_s / 4)

    async def turn(self) -> None:
        """Renew the office, or take it when it is free."""
        asked, before = self._clock(), self.holder
        try:
            if self._token is not None and not await self._renew(self._token):
                log.warning("no longer in office: another autoscaler may act")
                self._token = None
            if self._token is None:
                self._token = await self._coordination.acquire_leader(
                    self._worker_id, self._ttl_s, scaler=True
                )
            if self._token is not None:
                self._until = asked + _SURE * self._ttl_s
                self.holder = self._worker_id
            else:
                self.holder = await self._coordination.leader(scaler=True) or ""
        except JanusError:  # Redis is away: what is held runs out by itself
            self.holder = self.holder if self.held else ""
        if self.holder != before:
            log.info("in office: %s", self.holder or "nobody is known to be")
            if self.on_change is not None:
                await self.on_change()

    async def resign(self) -> None:
        """Leave it to a standby at once."""
        if self._token is not None:
            token, self._token = self._token, None
            with contextlib.suppress(JanusError):
                await self._coordination.resign_leader(self._worker_id, token, scaler=True)

    async def _renew(self, token: int) -> bool:
        return await self._coordination.renew_leader(self._worker_id, token, self._ttl_s, scaler=True)
