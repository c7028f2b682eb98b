"""Keeping a lease: written at each change, renewed every third of its time to live, deleted at the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn

from janus_runtime import _scripts
from janus_runtime._redis import RedisCalls, end_if_cancelled
from janus_runtime.errors import FailedPrecondition, JanusError
from janus_runtime.records import Lease

log = logging.getLogger("janus.coordination")

LOAD_FIELDS = frozenset({"running", "waiting"})
"""Fields that change all the time: written at most every LOAD_EVERY_S, without an event."""
LOAD_EVERY_S = 0.25
_RETRY_S = (0.1, 1.0)
"""Between attempts to write a lease to a Redis that is away, doubling from the first to the second."""


class Keys:
    """Names of the keys of one namespace; see :mod:`janus_runtime.records`."""

    def __init__(self, namespace: str) -> None:
        prefix = f"{{{namespace}}}:"
        self.member = f"{prefix}member"
        self.workers = f"{prefix}workers"
        self.leader = f"{prefix}leader"
        self.leader_token = f"{prefix}leader:token"
        self.scaler = f"{prefix}scaler"
        self.scaler_token = f"{prefix}scaler:token"
        self.epoch = f"{prefix}epoch"
        self.cohort = f"{prefix}cohort"
        self.layouts = f"{prefix}layouts"
        self.layout_prefix = f"{prefix}layout:"
        self.events = f"{prefix}events"
        self.objective = f"{prefix}objective"
        self.routing = f"{prefix}routing"
        self.lease_prefix = f"{prefix}lease:"
        self.journal_prefix = f"{prefix}journal:"
        self._prefix = prefix

    def lease(self, entry: str) -> str:
        """``entry`` is ``<role>:<worker_id>``."""
        return self.lease_prefix + entry

    def layout(self, version: int) -> str:
        return f"{self.layout_prefix}{version}"

    def stats(self, worker_id: str) -> str:
        return f"{self._prefix}stats:{worker_id}"


class LeaseKeeper:
    """Made by :meth:`Coordination.register`. While Redis is away changes wait and serving goes on."""

    def __init__(
        self,
        redis: RedisCalls,
        keys: Keys,
        lease: Lease,
        ttl_s: float,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """``on_epoch`` hears the cohort's epoch in force (0: none) at each renewal."""
        self._redis = redis
        self._on_epoch = on_epoch
        self._keys = keys
        self._lease = lease
        self._ttl_s = ttl_s
        self._announce = False
        self._written: Lease | None = None
        self._wake = asyncio.Event()
        self._urgent = False
        self._pause = _RETRY_S[0]
        self._lock = asyncio.Lock()
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self.superseded = asyncio.Event()
        """Set when another process took this worker id over; this one's lease is gone for good."""

    @property
    def lease(self) -> Lease:
        """The lease as this process means it; Redis has it too unless it is away."""
        return self._lease

    async def start(self) -> None:
        """First write (errors are raised), then renew in the background."""
        await self._write(announce=True)
        self._task = asyncio.get_running_loop().create_task(self._renew(), name="janus-lease")

    async def update(self, **changes: Any) -> None:
        """Change fields of the lease.

        A change of anything but ``running`` and ``waiting`` is written before this returns (when Redis is
        away: as soon as it is back; this does not raise for that) and announced to the others.
        Raises FailedPrecondition once another process has taken the worker id over.
        """
        if self.superseded.is_set():
            raise self._superseded_error()
        lease = dataclasses.replace(self._lease, **changes)
        changed = {k for k in changes if getattr(lease, k) != getattr(self._lease, k)}
        if not changed:
            return
        self._lease = lease
        if changed <= LOAD_FIELDS:
            self._wake.set()
            return
        self._announce = True
        await self._try_write()

    def renew_now(self) -> None:
        """Write it soon though it is not due: Redis may have lost it."""
        self._urgent = True
        self._wake.set()

    async def wait_superseded(self) -> NoReturn:
        """Wait until another process takes the worker id over, then raise FailedPrecondition."""
        await self.superseded.wait()
        raise self._superseded_error()

    async def stop(self) -> None:
        """Stop renewing; the lease expires by itself."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        """Stop renewing and delete the lease; when Redis is away, it expires by itself."""
        await self.stop()
        lease = self._lease
        entry = f"{lease.role}:{lease.worker_id}"
        keys = [self._keys.lease(entry), self._keys.workers, self._keys.events]
        try:
            await self._redis.script(
                "delete lease", _scripts.DELETE_LEASE, keys, [lease.member, entry, f"lease {entry} gone"]
            )
        except JanusError as error:
            log.warning(
                "the lease of %s expires by itself within %.0f s: %s", lease.worker_id, self._ttl_s, error
            )

    async def _renew(self) -> None:
        last = time.monotonic()
        while not self.superseded.is_set():
            # One timer per renewal; between them only changes wake this task, at most every LOAD_EVERY_S.
            pause = self._pause if self._failing else self._ttl_s / 3
            try:
                async with asyncio.timeout(max(0.01, last + pause - time.monotonic())):
                    await self._wake.wait()
                if not self._urgent:
                    await asyncio.sleep(max(0.0, last + LOAD_EVERY_S - time.monotonic()))
            except TimeoutError:
                pass
            self._wake.clear()
            self._urgent = False
            last = time.monotonic()
            await self._try_write()
            end_if_cancelled()

    async def _try_write(self) -> None:
        try:
            await self._write(announce=self._announce)
        except JanusError as error:
            if not self._failing:
                log.warning("cannot renew the lease, serving goes on: %s", error)
                self._wake.set()  # whoever renews it may be asleep until it is due
            self._pause = min(2 * self._pause, _RETRY_S[1]) if self._failing else _RETRY_S[0]
            self._failing = True
        else:
            if self._failing:
                log.info("lease renewed again")
            self._failing = False

    async def _write(self, *, announce: bool) -> None:
        async with self._lock:
            lease = self._lease
            entry = f"{lease.role}:{lease.worker_id}"
            epoch = await self._redis.script(
                "write lease",
                _scripts.WRITE_LEASE,
                [self._keys.lease(entry), self._keys.workers, self._keys.events, self._keys.cohort],
                [
                    lease.to_json(), int(self._ttl_s * 1000), lease.member, entry,
                    f"lease {entry} {lease.state}", "1" if announce else "0",
                ],
            )  # fmt: skip
            if epoch < 0:
                self.superseded.set()
                log.error("%s", self._superseded_error())
                return
            self._written = lease
            if self._lease is lease:
                self._announce = False
        if self._on_epoch is not None:
            self._on_epoch(epoch)

    def _superseded_error(self) -> FailedPrecondition:
        return FailedPrecondition(
            f"another process has registered as {self._lease.worker_id}",
            reason="WORKER_ID_TAKEN",
            next_step="Give each worker its own --worker-id and start this one again.",
        )
