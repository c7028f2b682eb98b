"""Carrying out a change of the mesh while it serves: start workers, drain workers, one change at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from janus_runtime.draining import still_held
from janus_runtime.errors import DeadlineExceeded, InvalidArgument, Unavailable
from janus_runtime.records import Lease, Role

from janus_cli.resize import Plan, check_targets, plan, plan_drain
from janus_cli.view import MeshView

JOIN_DEADLINE_S = 300.0
"""A new worker is in the cohort by then."""
DRAIN_DEADLINE_S = 120.0
"""A worker that drains is stopped by then, empty or not."""
_LOOK_EVERY_S = 0.1

Say = Callable[[str], None]


class Mesh(Protocol):
    """What a change needs of the supervisor."""

    view: MeshView

    @property
    def slots(self) -> int:
        """Slots of a new MoE worker; 0: one per expert."""

    def workers(self) -> Sequence[str]:
        """Ids of the attention and MoE workers that are not leaving."""

    def pid(self, worker_id: str) -> int | None:
        """Process id of a worker that runs now."""

    async def look(self) -> None:
        """Bring ``view`` up to date; Unavailable while Redis is away."""

    def add(self, worker_id: str) -> None:
        """Start a worker and watch it."""

    def leaving(self, worker_id: str) -> None:
        """Do not start it again."""

    async def remove(self, worker_id: str) -> None:
        """Stop a worker that is leaving, and forget it."""

    def changed(self) -> None:
        """Workers have come or gone."""


class Resizer:
    """One per supervisor; :meth:`handle` takes requests of :mod:`janus_cli.control`."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lock = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def handle(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        """Check, then change; with ``"wait": false`` the answer comes before the change is complete. "sizes" tells."""
        if request.get("op") == "sizes":
            return {"workers": self._counts()}
        if self._lock.locked():
            say("waiting for the change before this one")
        await self._lock.acquire()
        try:
            with contextlib.suppress(Unavailable):
                await self._mesh.look()
            steps = self._plan(request)
            task = asyncio.ensure_future(self._carry_out(steps, say))
        except BaseException:
            self._lock.release()
            raise
        # The change goes on when whoever asked goes away.
        self._background.add(task)
        task.add_done_callback(self._done)
        if request.get("wait", True):
            await asyncio.shield(task)
        return {"started": list(steps.start), "drained": list(steps.drain), "workers": self._counts()}

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        self._lock.release()
        if not task.cancelled():
            task.exception()  # whoever waited has it; else the workers' states show it

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _plan(self, request: dict[str, Any]) -> Plan:
        running, leases = self._mesh.workers(), self._mesh.view.leases
        if request.get("op") == "scale":
            targets = request.get("targets")
            if not isinstance(targets, dict):
                raise InvalidArgument("is no object", field="targets", value=targets)
            check_targets(targets)
            return plan(running, leases, targets, self._mesh.slots)
        if request.get("op") == "drain":
            return plan_drain(running, leases, str(request.get("worker", "")), self._mesh.slots)
        raise InvalidArgument(
            "is unknown", field="op", value=request.get("op"), allowed="scale, drain, sizes"
        )

    def _counts(self) -> dict[str, int]:
        names = self._mesh.workers()
        return {
            target: sum(name.startswith(f"{role}-") for name in names)
            for target, role in (("attention", Role.ATTENTION), ("experts", Role.MOE))
        }

    async def _carry_out(self, steps: Plan, say: Say) -> None:
        """New workers are in the cohort before old ones leave it: capacity never dips below both."""
        for worker_id in steps.start:
            say(f"starting {worker_id}")
            self._mesh.add(worker_id)
        joins = (self._joined(worker_id, say) for worker_id in steps.start)
        for outcome in await asyncio.gather(*joins, return_exceptions=True):
            if outcome is not None:
                raise outcome
        # One after the other, so that streams are handed to workers that stay or leave last.
        for worker_id in steps.drain:
            self._mesh.leaving(worker_id)
            await self._drain(worker_id, say)
        self._mesh.changed()

    async def _joined(self, worker_id: str, say: Say) -> None:
        deadline = time.monotonic() + JOIN_DEADLINE_S
        while True:
            with contextlib.suppress(Unavailable):
                await self._mesh.look()
            lease = self._lease(worker_id)
            if lease is not None and self._mesh.view.member_of_cohort(lease):
                say(f"{worker_id} serves in epoch {lease.epoch}")
                self._mesh.changed()
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{worker_id} was not in the cohort after {JOIN_DEADLINE_S:g} s: "
                    + (lease.detail if lease else "it has no lease"),
                    next_step="See its log; it is started again when it dies.",
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _drain(self, worker_id: str, say: Say) -> None:
        """Until it holds nothing and is asked nothing, then stop it. A worker that is dead holds nothing."""
        say(f"draining {worker_id}")
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        said = ""
        while self._mesh.pid(worker_id) is not None:
            state = await self._drained(worker_id)
            if not state:
                break
            if state != said:
                said = state
                say(f"{worker_id}: {state}")
            if time.monotonic() > deadline:
                say(
                    f"{worker_id} was not drained after {DRAIN_DEADLINE_S:g} s ({state}); stopping it as it is"
                )
                break  # as if it had died: streams survive that
            await asyncio.sleep(_LOOK_EVERY_S)
        await self._mesh.remove(worker_id)
        say(f"{worker_id} has left")

    async def _drained(self, worker_id: str) -> str:
        """What it still waits for; empty when it may be stopped."""
        try:
            await self._mesh.look()
        except Unavailable as error:
            return error.message
        lease, cohort = self._lease(worker_id), self._mesh.view.cohort
        if lease is None or not lease.grpc_address:
            # Starting, or its lease has lapsed: it may come to itself, and only it knows of its streams.
            return "it has no lease" if self._mesh.pid(worker_id) is not None else ""
        return await still_held(lease, cohort)

    def _lease(self, worker_id: str) -> Lease | None:
        lease = self._mesh.view.get(worker_id)
        return lease if lease is not None and lease.pid == self._mesh.pid(worker_id) else None
