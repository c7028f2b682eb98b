"""The scheduler in office: reads leases, decides, publishes cohort and layout. A second one stands by."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from janus_runtime.coordination import OFFICE_FREE, Coordination, Look
from janus_runtime.errors import JanusError, StaleLeader
from janus_runtime.records import CohortRecord, LayoutRecord, Lease

from janus_scheduler.cuts import Cuts, cut_pairs, without_cut
from janus_scheduler.membership import Form, Keep, Rules, Settler, Wait, anew, decide, to_member
from janus_scheduler.placement import build_layout
from janus_scheduler.standstill import Standstill

log = logging.getLogger("janus.scheduler")

ROUND_S = 1.0
"""Without an event it looks this often while something is awaited."""
QUIET_S = 5.0
"""And at least this often while nothing is, see :meth:`Publisher._quiet`."""
_EXPIRY_SLACK_S = 0.02
_LOSS_SETTLE_S = 0.03
"""While a member is lost every step waits: only what dies together is gathered."""


class Publisher:
    """Runs until cancelled; :attr:`status` always says what it does or waits for."""

    def __init__(
        self,
        coordination: Coordination,
        worker_id: str,
        rules: Rules,
        *,
        settle_s: float,
        lease_ttl_s: float,
        on_status: Callable[[str], Awaitable[None]] | None = None,
        on_leases: Callable[[Sequence[Lease], Collection[int]], None] | None = None,
        on_late: Callable[[Collection[int], Collection[int]], None] | None = None,
    ) -> None:
        """``on_leases`` hears, at each look while in office, every live lease and the numbers of the cohort's members,
        who may have no lease just now; none of both when not in office. ``on_late`` hears of members that steps of the
        cohort have waited for long, and of those who wait."""
        self._coordination = coordination
        self._worker_id = worker_id
        self._rules = rules
        self._lease_ttl_s = lease_ttl_s
        self._settler = Settler(settle_s)
        self._cuts = Cuts()
        self._standstill = Standstill()
        self._on_status = on_status
        self._on_leases = on_leases
        self._on_late = on_late
        self._dead: set[int] = set()
        self._silent: set[int] = set()
        self._seen: set[int] = set()
        """Members that have had a lease since Redis was last lost: of these a missing one says something."""
        self._wake: Callable[[], None] = lambda: None
        self._token: int | None = None
        self._blind_until = 0.0
        self._refused: tuple[str, ...] = ()
        self.status = "starting"
        """One line for people."""
        self.cohort: CohortRecord | None = None
        """The last cohort seen or published; outlives Redis."""
        self.layout: LayoutRecord | None = None
        """Its layout."""
        self._publishing = asyncio.Lock()

    @property
    def in_office(self) -> bool:
        """True while this scheduler may publish."""
        return self._token is not None

    async def run(self) -> None:
        """Look, decide, publish: at each event of a worker's lease, and when one may have expired."""
        events = ("lease attention:", "lease moe:", "cohort", OFFICE_FREE)
        with self._coordination.watch_events(*events) as watcher:
            self._wake = watcher.wake
            while True:
                try:
                    pause = await self.round(time.monotonic())
                except StaleLeader as error:
                    log.warning("%s", error)
                    self._lose_office()
                    pause = ROUND_S
                except JanusError as error:
                    await self._say(f"cannot coordinate: {error}", logging.WARNING)
                    self._lose_sight()
                    pause = ROUND_S
                await watcher.wait(pause)

    async def round(self, now: float) -> float:
        """One look; returns the seconds until the next one is due. ``now`` is monotonic."""
        async with self._publishing:
            return await self._round(now)

    async def _round(self, now: float) -> float:
        look = await self._look()
        if look is None:
            if self._on_leases is not None:
                self._on_leases((), ())
            await self._remember()
            await self._say(f"standing by for {await self._coordination.leader() or 'the office'}")
            return ROUND_S
        await self._restore(look.cohort)
        members = {m.member for m in (*self.cohort.attention, *self.cohort.moe)} if self.cohort else set()
        self._dead &= members | {lease.member for lease in look.leases}
        if self._on_leases is not None:
            self._on_leases(look.leases, members)
        self._ask_after(look.leases, members)
        gone = self._dead | self._silent
        here = {lease.member for lease in look.leases}
        ended = gone | (self._seen - here)
        self._seen |= here
        leases = tuple(lease for lease in look.leases if lease.member not in gone)
        # A cohort whose layout cannot be read is of no use to anyone: form another.
        previous = self.cohort if self.layout is not None else None
        self._cuts.forget(lease.member for lease in look.leases)
        still = self._standstill.found(leases, previous, now) if previous is not None else None
        pairs = cut_pairs(leases, previous) if previous is not None else set()
        cut = self._cuts.found(pairs | still.pairs if still is not None else pairs, now)
        reachable, reasons = without_cut(leases, cut)
        decision = decide(reachable, previous, self._rules, patient=now < self._blind_until, dead=ended)
        if still is not None:
            log.warning("epoch %d stands still: %s", self.cohort.epoch if self.cohort else 0, still.reason)
            if isinstance(decision, Keep) and previous is not None:
                await self._publish(anew(reachable, previous, "the step is started anew"), leases)
                return ROUND_S
        self._log_refused((*decision.refused, *reasons))
        if isinstance(decision, Keep):
            self._settler.remaining(None, now)
            await self._say(self._describe())
            return self._quiet(look, now)
        if isinstance(decision, Wait):
            self._settler.remaining(None, now)
            await self._say("; ".join((decision.reason, *decision.refused)))
        else:
            # Load and detail in a lease change all the time; who and where is what must settle.
            chosen = tuple(map(to_member, (*decision.attention, *decision.moe)))
            left = self._settler.remaining(chosen, now, _LOSS_SETTLE_S if decision.lost else float("inf"))
            if left > 0:
                return min(left, ROUND_S)
            await self._publish(decision, leases)
        return ROUND_S

    async def relayout(
        self, epoch: int, placement: tuple[tuple[tuple[int, ...], ...], ...]
    ) -> LayoutRecord | None:
        """Publish the cohort of ``epoch`` again with another placement, under a new epoch: its members switch at
        a step's border. None when it is not in force any more, or this scheduler not in office."""
        async with self._publishing:
            cohort, layout = self.cohort, self.layout
            if self._token is None or cohort is None or layout is None or cohort.epoch != epoch:
                return None
            new = await self._coordination.next_epoch(epoch)
            record = dataclasses.replace(cohort, epoch=new, layout_version=new, follows=epoch)
            moved = dataclasses.replace(layout, version=new, placement=placement)
            await self._coordination.publish_cohort(record, moved, self._token)
            self.cohort, self.layout = record, moved
            log.info("epoch %d: another placement, layout %d", new, new)
            await self._say(self._describe())
            return moved

    def dead(self, member: int) -> None:
        """This incarnation has ended for certain: it is not waited for, lease or none."""
        self._dead.add(member)

    def silent(self, member: int, silent: bool) -> None:
        """It does not answer, though others wait for it: the cohort goes on without it, if it can. Or it does again."""
        if silent:
            log.warning("member %d does not answer, and others wait for it: left out until it does", member)
            self._silent.add(member)
        else:
            self._silent.discard(member)
        self._wake()

    def _ask_after(self, leases: Sequence[Lease], members: Collection[int]) -> None:
        epoch = self.cohort.epoch if self.cohort else 0
        waiting = [lease for lease in leases if lease.late and lease.epoch == epoch]
        late = {member for lease in waiting for member in lease.late if member in members}
        if late and self._on_late is not None:
            self._on_late(late, {lease.member for lease in waiting})

    async def resign(self) -> None:
        """Leave the office at once, for a standby."""
        if self._token is not None:
            token, self._token = self._token, None
            await self._coordination.resign_leader(self._worker_id, token)

    def _quiet(self, look: Look, now: float) -> float:
        """Seconds that nothing can happen without an event: a lease that expires makes none, nor does the office."""
        if now < self._blind_until:
            return ROUND_S
        return min(QUIET_S, self._lease_ttl_s / 3, look.expires_s + _EXPIRY_SLACK_S)

    async def _look(self) -> Look | None:
        """Renew the office, or take it when it is free, and see what there is; None while another has it."""
        if self._token is not None:
            look = await self._coordination.look(self._worker_id, self._token, self._lease_ttl_s)
            if look is not None:
                return look
            self._lose_office()
        self._token = await self._coordination.acquire_leader(self._worker_id, self._lease_ttl_s)
        if self._token is None:
            return None
        log.info("in office, fencing token %d", self._token)
        return await self._coordination.look(self._worker_id, self._token, self._lease_ttl_s)

    def _lose_office(self) -> None:
        if self._token is not None:
            log.warning("no longer in office")
        self._token = None
        self._lose_sight()

    def _lose_sight(self) -> None:
        """Workers renew within their time to live; until then a missing lease means nothing."""
        self._seen.clear()
        self._blind_until = time.monotonic() + self._lease_ttl_s + ROUND_S

    async def _remember(self) -> None:
        """Standing by: know what is in force, should the office fall to us or Redis come back empty."""
        record = await self._coordination.cohort()
        if record is not None and record != self.cohort:
            self.cohort = record
            self.layout = await self._coordination.layout(record.layout_version)

    async def _restore(self, record: CohortRecord | None) -> None:
        """In office: take over ``record``, what is published; publish again what Redis has lost."""
        assert self._token is not None
        if record is None and self.cohort is not None and self.layout is not None:
            log.warning("Redis has lost the cohort: publishing epoch %d again", self.cohort.epoch)
            self._lose_sight()
            await self._coordination.publish_cohort(self.cohort, self.layout, self._token)
        elif record is not None and record != self.cohort:
            self.cohort = record
            self.layout = await self._coordination.layout(record.layout_version)

    async def _publish(self, decision: Form, leases: Sequence[Lease]) -> None:
        assert self._token is not None
        known = [self.cohort.epoch if self.cohort else 0, *(lease.epoch for lease in leases)]
        epoch = await self._coordination.next_epoch(max(known))
        ranks = [m.worker_id for m in self.cohort.moe] if self.cohort else []
        layout = build_layout(decision.moe, epoch, self.layout, ranks, self._rules.min_replicas)
        record = CohortRecord(
            epoch=epoch,
            attention=tuple(map(to_member, decision.attention)),
            moe=tuple(map(to_member, decision.moe)),
            layout_version=layout.version,
            gating=self._rules.gating,
            scheduling=self._rules.scheduling,
            exchange=self._rules.exchange,
            model=decision.attention[0].model,
            follows=self.cohort.epoch if self.cohort and not decision.lost else 0,
        )
        await self._coordination.publish_cohort(record, layout, self._token)
        self.cohort, self.layout = record, layout
        log.info("epoch %d: %s", epoch, decision.reason)
        await self._say(self._describe())

    def _describe(self) -> str:
        assert self.cohort is not None
        c = self.cohort
        return (
            f"epoch {c.epoch}: {len(c.attention)} attention, {len(c.moe)} MoE, layout {c.layout_version}"
            + "".join(f"; left out: {text}" for text in self._refused)
        )

    def _log_refused(self, refused: tuple[str, ...]) -> None:
        for text in refused:
            if text not in self._refused:
                log.warning("left out of the cohort: %s", text)
        self._refused = refused

    async def _say(self, status: str, level: int = logging.INFO) -> None:
        if status == self.status:
            return
        self.status = status
        log.log(level, "%s", status)
        if self._on_status is not None:
            await self._on_status(status)
