"""Coordination through Redis: leases, the cohort record and its epochs, layouts, the scheduler's office,
statistics. Redis holds coordination state only; while it is away, what runs goes on running."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from janus_runtime import _scripts
from janus_runtime._events import LEASED_POLL_S, POLL_S, EventHub, Watcher
from janus_runtime._redis import RedisCalls, shown_url
from janus_runtime.errors import JanusError, StaleLeader
from janus_runtime.journal import JournalStore
from janus_runtime.lease import Keys, LeaseKeeper
from janus_runtime.records import CohortRecord, LayoutRecord, Lease, RecordError, Role
from janus_runtime.settings import ServiceSettings
from janus_runtime.startup import Startup

log = logging.getLogger("janus.coordination")

R = TypeVar("R", Lease, CohortRecord, LayoutRecord)

STATS_LENGTH = 256
"""Samples kept per worker, about."""
STATS_BATCH = 32
"""Workers whose samples one script reads: Redis serves nobody else meanwhile."""
STATS_KEEP_S = 3600
"""A worker's samples outlive its last one by this long."""
ROUTING_LENGTH = 2048
"""Routing reports kept, about; each is one layer's, a few kilobytes."""
OFFICE_FREE = "office free"
"""Event: whoever was in an office has left it or is dead."""
LAYOUTS_KEPT = 8
"""Layout versions kept; older ones are NOT_FOUND."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSample:
    """What a worker reported at one time."""

    time_s: float
    """Redis's clock, seconds since the Unix epoch."""
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the scheduler in office sees at one moment."""

    cohort: CohortRecord | None
    """The cohort in force."""
    leases: tuple[Lease, ...]
    """Every live lease, by role and worker id."""
    expires_s: float
    """Until the first of them ends, unless it is renewed; infinity when there is none."""


class Coordination:
    """One per process; close it last."""

    def __init__(self, redis: RedisCalls, namespace: str, lease_ttl_s: float) -> None:
        self._redis = redis
        self._keys = Keys(namespace)
        self._ttl_s = lease_ttl_s
        self._hub = EventHub(redis, self._keys.events, self._back)
        self._complained: dict[str, str] = {}
        self._epoch = -1
        self._keepers: list[LeaseKeeper] = []
        self._poll_s = POLL_S
        self._parsed: dict[str, tuple[bytes, Lease | None]] = {}

    @classmethod
    async def connect(cls, settings: ServiceSettings, startup: Startup | None = None) -> Coordination:
        """Wait for Redis, saying so, up to ``settings.redis_wait_s``; then Unavailable."""
        redis = RedisCalls(settings.redis_url)
        startup = startup or Startup("client", settings.worker_id or "janus")
        try:
            await redis.wait_until_up(startup, settings.redis_wait_s)
        except BaseException:
            await redis.close()
            raise
        return cls(redis, settings.namespace, settings.lease_ttl_s)

    @property
    def url(self) -> str:
        """Where Redis is, without credentials."""
        return shown_url(self._redis.url)

    async def close(self) -> None:
        """Stop listening and close the connections. Leases that their keepers did not close expire by themselves:
        nobody renews them, which would open connections anew."""
        for keeper in self._keepers:
            await keeper.stop()
        await self._hub.close()
        await self._redis.close()

    # -- leases ---------------------------------------------------------------------------------------

    async def allocate_member(self) -> int:
        """A number no incarnation of any worker had before; fits 32 bits."""
        return int(await self._redis.script("allocate member", _scripts.UNIQUE, [self._keys.member], []))

    async def register(self, lease: Lease) -> LeaseKeeper:
        """Write the lease and keep it alive; allocates ``member`` when the lease has 0.

        The same worker id registered again takes it over: the former keeper's ``superseded`` is set.
        """
        if lease.member == 0:
            lease = dataclasses.replace(lease, member=await self.allocate_member())
        keeper = LeaseKeeper(self._redis, self._keys, lease, self._ttl_s, self._heard)
        await keeper.start()
        self._keepers.append(keeper)
        self._poll_s = LEASED_POLL_S
        return keeper

    async def bury(self, lease: Lease) -> None:
        """Delete the lease of a worker that is known to be dead, so that nobody waits for it to expire.

        Only this incarnation's: a later one's stays. A scheduler's or autoscaler's office goes with it.
        """
        if lease.role in (Role.SCHEDULER, Role.AUTOSCALER):
            keys = [self._office(lease.role is Role.AUTOSCALER)[0], self._keys.events]
            await self._redis.script(
                "free the office", _scripts.FREE_OFFICE, keys, [lease.worker_id, OFFICE_FREE]
            )
        entry = f"{lease.role}:{lease.worker_id}"
        keys = [self._keys.lease(entry), self._keys.workers, self._keys.events]
        await self._redis.script(
            "delete lease", _scripts.DELETE_LEASE, keys, [lease.member, entry, f"lease {entry} gone"]
        )

    def _back(self) -> None:
        # A lease that Redis has lost is missed by others long before it is due.
        for keeper in self._keepers:
            keeper.renew_now()

    def _heard(self, epoch: int) -> None:
        # An event can be lost with its connection; the next renewal of the lease then tells of the new cohort.
        if epoch != self._epoch:
            self._epoch = epoch
            self._hub.wake(f"cohort {epoch}")

    async def workers(self, role: Role | str | None = None) -> list[Lease]:
        """Every live lease, by role and worker id; records that cannot be read are skipped and logged."""
        found = await self._redis.call(
            "list workers", lambda: self._redis.client.smembers(self._keys.workers)
        )
        entries = sorted(e.decode("utf-8", "replace") for e in found)
        if role is not None:
            entries = [e for e in entries if e.startswith(f"{Role(role)}:")]
        if not entries:
            return []
        keys = [self._keys.lease(e) for e in entries]
        raw = await self._redis.call("read leases", lambda: self._redis.client.mget(keys))
        gone = [e for e, value in zip(entries, raw, strict=True) if value is None]
        if gone:
            index = [self._keys.workers, *(self._keys.lease(e) for e in gone)]
            await self._redis.script("forget leases", _scripts.PRUNE_INDEX, index, list(gone))
        leases = (self._parse(Lease, key, value) for key, value in zip(keys, raw, strict=True))
        return [lease for lease in leases if lease is not None]

    # -- cohort and layout ----------------------------------------------------------------------------

    async def cohort(self) -> CohortRecord | None:
        """The cohort in force; None before the first."""
        raw = await self._redis.call("read cohort", lambda: self._redis.client.get(self._keys.cohort))
        return self._parse(CohortRecord, self._keys.cohort, raw)

    async def layout(self, version: int) -> LayoutRecord | None:
        """A layout by version; None when it never was or is too old."""
        key = self._keys.layout(version)
        return self._parse(
            LayoutRecord, key, await self._redis.call("read layout", lambda: self._redis.client.get(key))
        )

    async def watch_cohort(self) -> AsyncGenerator[CohortRecord, None]:
        """The cohort in force, once there is one, then each later one; a lost Redis does not end it."""
        last: CohortRecord | None = None
        complained = False
        with self._hub.watch("cohort") as watcher:
            while True:
                try:
                    current = await self.cohort()
                except JanusError as error:
                    if not complained:
                        log.warning("cohort: keeping epoch %d: %s", last.epoch if last else 0, error)
                    complained = True
                    await watcher.wait(1.0)
                    continue
                complained = False
                if current is not None and current != last:
                    last = current
                    yield current
                    continue
                await watcher.wait(self._poll_s)

    def watch_events(self, *prefixes: str) -> AbstractContextManager[Watcher]:
        """``with coordination.watch_events("lease") as w: await w.wait(timeout_s)``: the next event."""
        return self._hub.watch(*prefixes)

    # -- the scheduler's office -----------------------------------------------------------------------

    async def acquire_leader(self, worker_id: str, ttl_s: float, *, scaler: bool = False) -> int | None:
        """A fencing token, larger than any before; None while another scheduler is in office.

        ``scaler``, here and below: the autoscalers' office instead.
        """
        token = await self._redis.script(
            "take office", _scripts.ACQUIRE_LEADER, self._office(scaler), [worker_id, int(ttl_s * 1000)]
        )
        return int(token) or None

    async def renew_leader(self, worker_id: str, token: int, ttl_s: float, *, scaler: bool = False) -> bool:
        """False when the office is lost."""
        args: list[str | int | bytes] = [f"{token} {worker_id}", int(ttl_s * 1000)]
        renewed = await self._redis.script(
            "renew office", _scripts.RENEW_LEADER, self._office(scaler)[:1], args
        )
        return bool(renewed)

    async def look(self, worker_id: str, token: int, ttl_s: float) -> Look | None:
        """Renew the office and see cohort and leases, in one call; None when the office is lost."""
        raw = await self._redis.script(
            "look at the mesh",
            _scripts.LOOK,
            [self._keys.leader, self._keys.cohort, self._keys.workers],
            [f"{token} {worker_id}", int(ttl_s * 1000), self._keys.lease_prefix],
        )
        if not raw[0]:
            return None
        found = sorted(zip(raw[2::3], raw[3::3], raw[4::3], strict=True))
        before, self._parsed = self._parsed, {}
        for entry, text, _ in found:
            key = self._keys.lease(entry.decode("utf-8", "replace"))
            same = key in before and before[key][0] == text  # most are: renewed, with nothing new
            self._parsed[key] = before[key] if same else (text, self._parse(Lease, key, text))
        return Look(
            cohort=self._parse(CohortRecord, self._keys.cohort, raw[1]),
            leases=tuple(lease for _, lease in self._parsed.values() if lease is not None),
            expires_s=min((ms / 1000 for *_, ms in found if ms >= 0), default=float("inf")),
        )

    async def resign_leader(self, worker_id: str, token: int, *, scaler: bool = False) -> None:
        """Leave the office, so that a standby need not wait for it to expire."""
        await self._redis.script(
            "leave office",
            _scripts.RESIGN_LEADER,
            [self._office(scaler)[0], self._keys.events],
            [f"{token} {worker_id}", OFFICE_FREE],
        )

    async def leader(self, *, scaler: bool = False) -> str | None:
        """Worker id of the scheduler in office."""
        key = self._office(scaler)[0]
        raw = await self._redis.call("read leader", lambda: self._redis.client.get(key))
        return raw.decode("utf-8", "replace").partition(" ")[2] if raw else None

    def _office(self, scaler: bool) -> list[str]:
        keys = self._keys
        return [keys.scaler, keys.scaler_token] if scaler else [keys.leader, keys.leader_token]

    async def next_epoch(self, floor: int = 0) -> int:
        """A new epoch above ``floor`` (the largest epoch any live worker runs), never given twice."""
        return int(await self._redis.script("next epoch", _scripts.NEXT_EPOCH, [self._keys.epoch], [floor]))

    async def publish_cohort(self, record: CohortRecord, layout: LayoutRecord, fencing_token: int) -> None:
        """Write cohort and layout in one step and announce them.

        StaleLeader when the token is not the one in office or a later epoch is already published.
        """
        keys = self._keys
        result = await self._redis.script(
            "publish cohort",
            _scripts.PUBLISH_COHORT,
            [keys.leader, keys.cohort, keys.layout(layout.version), keys.layouts, keys.events, keys.epoch],
            [
                str(fencing_token), record.to_json(), record.epoch, layout.to_json(), layout.version,
                f"cohort {record.epoch}", keys.layout_prefix, LAYOUTS_KEPT,
            ],
        )  # fmt: skip
        if result == 1:
            return
        cause = "another scheduler is in office" if result == 0 else "a later epoch is already published"
        raise StaleLeader(
            f"cohort epoch {record.epoch} was refused: {cause}",
            next_step="Nothing is lost: the scheduler in office publishes.",
        )

    # -- statistics -----------------------------------------------------------------------------------

    async def report_stats(self, worker_id: str, values: Mapping[str, float]) -> None:
        """Append what a worker measured (cumulative counters and gauges); at most once a second, please."""
        if not values:
            return
        key = self._keys.stats(worker_id)
        fields: dict[Any, Any] = {name: repr(float(value)) for name, value in values.items()}
        pipe = self._redis.client.pipeline(transaction=False)
        pipe.xadd(key, fields, maxlen=STATS_LENGTH, approximate=True)
        pipe.expire(key, STATS_KEEP_S)
        await self._redis.call("report statistics", pipe.execute)

    async def read_stats(self, worker_id: str, *, window_s: float = 60.0) -> list[StatsSample]:
        """Samples of the last ``window_s`` seconds, oldest first; malformed ones are skipped."""
        key, least = self._keys.stats(worker_id), f"{max(0, int((time.time() - window_s) * 1000))}-0"
        raw = await self._redis.call("read statistics", lambda: self._redis.client.xrange(key, min=least))
        entries = [(e.decode(), {k.decode(): v for k, v in fields.items()}) for e, fields in raw or ()]
        return self._samples(worker_id, entries)

    def _samples(self, worker_id: str, entries: Iterable[tuple[str, dict[str, Any]]]) -> list[StatsSample]:
        samples = []
        for entry_id, fields in entries:
            try:
                values = {k: float(v) for k, v in fields.items()}
                samples.append(StatsSample(time_s=int(entry_id.partition("-")[0]) / 1000, values=values))
            except (ValueError, AttributeError) as error:
                self._complain(self._keys.stats(worker_id), f"sample {entry_id!r}: {error}")
        return samples

    async def read_all_stats(
        self, worker_ids: Iterable[str], *, window_s: float = 60.0
    ) -> dict[str, list[StatsSample]]:
        """:meth:`read_stats` of many workers, some dozens of them in a round trip."""
        names = list(worker_ids)
        if not names:
            return {}
        least = f"{max(0, int((time.time() - window_s) * 1000))}-0"
        found: dict[str, list[StatsSample]] = {}
        for begin in range(0, len(names), STATS_BATCH):
            some = names[begin : begin + STATS_BATCH]
            keys = [self._keys.stats(name) for name in some]
            texts = await self._redis.script("read statistics", _scripts.READ_STATS, keys, [least])
            for name, text in zip(some, texts, strict=True):
                rows = json.loads(text) or []
                entries = [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in rows]
                found[name] = self._samples(name, entries)
        return found

    async def report_routing(self, fields: Mapping[str, bytes]) -> None:
        """Append one layer's routing report (:class:`janus_placement.Report`)."""
        entry: dict[Any, Any] = dict(fields)
        pipe = self._redis.client.pipeline(transaction=False)
        pipe.xadd(self._keys.routing, entry, maxlen=ROUTING_LENGTH, approximate=True)
        pipe.expire(self._keys.routing, STATS_KEEP_S)
        await self._redis.call("report routing", pipe.execute)

    async def read_routing(self, after: str, count: int = 256) -> tuple[str, list[dict[bytes, bytes]]]:
        """Reports later than the position ``after`` ("0": all kept), and the position of the last."""
        raw = await self._redis.call(
            "read routing", lambda: self._redis.client.xrange(self._keys.routing, f"({after}", count=count)
        )
        entries = list(raw or ())
        last = entries[-1][0].decode() if entries else after
        return last, [fields for _, fields in entries]

    # -- the autoscaler's objective -------------------------------------------------------------------

    async def read_objective(self) -> bytes | None:
        """What :meth:`write_objective` kept."""
        value: bytes | None = await self._redis.call(
            "read objective", lambda: self._redis.client.get(self._keys.objective)
        )
        return value

    async def write_objective(self, value: str) -> None:
        """Keep the autoscaler's objective."""
        await self._redis.call("write objective", lambda: self._redis.client.set(self._keys.objective, value))

    def journal(self, *, ttl_s: int, entries: int, items: int) -> JournalStore:
        """The gateways' journal of keyed requests; see :class:`JournalStore`."""
        return JournalStore(self._redis, self._keys.journal_prefix, ttl_s=ttl_s, entries=entries, items=items)

    def _parse(self, cls: type[R], key: str, raw: bytes | None) -> R | None:
        if raw is None:
            return None
        try:
            record = cls.from_json(raw)
        except RecordError as error:
            self._complain(key, str(error))
            return None
        self._complained.pop(key, None)
        return record

    def _complain(self, key: str, text: str) -> None:
        if self._complained.get(key) != text:  # once per cause, not once per poll
            self._complained[key] = text
            log.error("%s holds what Janus did not write, ignored: %s", key, text)
