"""Live re-layout: statistics in, and when another placement pays: load beside, switch by epoch, let go after.

Order: every MoE worker loads what the new layout gives it beside what it has (LoadExperts, off its stepping
thread); then the publisher writes the same cohort with the new layout under a new epoch, which the workers take
up at a step's border; they let go of what they no longer host as they do. A worker that fails or dies before the
switch ends the attempt: what was loaded is let go, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from janus_runtime.channel import connect
from janus_runtime.coordination import Coordination, StatsSample
from janus_runtime.errors import InvalidArgument, JanusError, Unavailable, from_rpc_error
from janus_runtime.records import CohortRecord, LayoutRecord, Lease
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import moe_pb2, moe_pb2_grpc

from janus_scheduler.placement import pool_of
from janus_scheduler.publisher import Publisher

if TYPE_CHECKING:
    from janus_placement import Placement, Prices, RoutingWindow

    from janus_scheduler.proposal import LayerVerdict, Proposal

log = logging.getLogger("janus.scheduler")

LOAD_DEADLINE_S = 120.0
STATS_WINDOW_S = 60.0
_UNLOAD_S = 10.0
_TAKE_UP_S = 10.0
_FIRST_SWITCH_S = 0.1
"""Seconds of the mesh's time that a switch is thought to cost before one was measured."""
_SWITCH_S = (0.001, 10.0)
"""What a measured one may come to: steps vary by more than a switch costs."""
_GONE = "an MoE worker is gone; the next epoch brings a layout for those that are left"
_FIRST_LOAD_S = 0.02
"""Seconds that loading a replica is thought to take before one was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a look."""

    changed: bool
    layout_version: int
    reason: str
    layers: tuple[LayerVerdict, ...] = ()
    replicas_loaded: int = 0


@dataclass(slots=True)
class _Ends:
    """First and last sample of a worker within the window."""

    first: StatsSample
    last: StatsSample

    def rate(self, name: str) -> float:
        return self.last.values.get(name, 0.0) - self.first.values.get(name, 0.0)


@dataclass(slots=True)
class _Known:
    window: RoutingWindow | None = None
    position: str = "0"
    news: bool = False
    load_s: float = _FIRST_LOAD_S
    switch_s: float = _FIRST_SWITCH_S
    switches: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Switches, and seconds that they cost, as each attention worker counted them at the last look."""
    complained: str = ""


class Rebalancer:
    """One per scheduler; acts only while its publisher is in office."""

    def __init__(
        self,
        coordination: Coordination,
        publisher: Publisher,
        settings: ServiceSettings,
        *,
        every_s: float,
        horizon_s: float,
        min_replicas: int,
        half_life_s: float = 60.0,
    ) -> None:
        self._coordination = coordination
        self._publisher = publisher
        self._settings = settings
        self._every_s, self._horizon_s = every_s, horizon_s
        self._min_replicas, self._half_life_s = min_replicas, half_life_s
        self._one = asyncio.Lock()
        self._known = _Known()

    async def run(self) -> None:
        """Look every ``every_s`` while tokens flow; until cancelled."""
        while self._every_s:
            await asyncio.sleep(self._every_s)
            if not self._publisher.in_office:
                continue
            try:
                outcome = await self.rebalance(dry_run=False, only_news=True)
            except JanusError as error:
                log.warning("no look at the placement: %s", error)
                continue
            except Exception:
                log.exception("no look at the placement; the layout in force stays")
                continue
            if outcome.changed:
                log.info("layout %d: %s", outcome.layout_version, outcome.reason)

    async def rebalance(
        self, *, dry_run: bool, only_news: bool = False, target: Sequence[Placement] = ()
    ) -> Outcome:
        """One look; with ``dry_run`` only what it would do. ``target``: the placement to move to, instead of a search.

        Raises JanusError when Redis is away, InvalidArgument for a ``target`` that the workers cannot have.
        """
        async with self._one:
            await self._collect()
            cohort, layout, window = self._publisher.cohort, self._publisher.layout, self._known.window
            if cohort is None or layout is None:
                raise Unavailable(
                    f"no layout yet: {self._publisher.status}", reason="NO_COHORT", retry_after_s=1.0
                )
            stays = layout.version
            if target:
                moe = await self._leases(cohort)
                if moe is None:
                    return Outcome(changed=False, layout_version=stays, reason=_GONE)
                asked_for = await asyncio.to_thread(self._demanded, target, moe, cohort, layout)
                if not asked_for.go:
                    return Outcome(changed=False, layout_version=stays, reason="this placement is in force")
                return await self._act(asked_for, moe, cohort, layout, dry_run=dry_run)
            if window is None or not window.layers:
                return Outcome(changed=False, layout_version=stays, reason="no routing was reported yet")
            if window.num_experts != layout.num_experts:
                return Outcome(
                    changed=False, layout_version=stays,
                    reason=f"routing was reported of {window.num_experts} experts; this mesh has {layout.num_experts}",
                )  # fmt: skip
            if only_news and not self._known.news:
                return Outcome(changed=False, layout_version=stays, reason="no routing since the last look")
            self._known.news = False
            moe = await self._leases(cohort)
            if moe is None:
                return Outcome(changed=False, layout_version=stays, reason=_GONE)
            proposal = await self._propose(window, moe, cohort, layout)
            return await self._act(proposal, moe, cohort, layout, dry_run=dry_run)

    async def _act(
        self,
        proposal: Proposal,
        moe: list[Lease],
        cohort: CohortRecord,
        layout: LayoutRecord,
        *,
        dry_run: bool,
    ) -> Outcome:
        count = sum(len(experts) for layers in proposal.loads.values() for experts in layers.values())
        text = _summary(proposal, count)
        if not proposal.go or dry_run:
            return Outcome(
                changed=False, layout_version=layout.version, reason=text, layers=proposal.layers,
                replicas_loaded=count if dry_run else 0,
            )  # fmt: skip
        steps, why_not = self._stages(proposal, moe)
        if not steps:
            return Outcome(
                changed=False, layout_version=layout.version, reason=why_not, layers=proposal.layers
            )
        moved, done = layout, 0
        for number, layers in enumerate(steps):
            part = proposal.part(layers, moved.placement)
            if number:
                cohort = await self._taken_up(cohort)
            failure, after = await self._switch(part, moe, cohort)
            if after is None:
                done_text = f"after {number} of {len(steps)} stages" if number else "nothing has changed"
                return Outcome(
                    changed=bool(number), layout_version=moved.version, layers=proposal.layers,
                    reason=f"given up, {done_text}: {failure}", replicas_loaded=done,
                )  # fmt: skip
            moved = after
            done += sum(len(experts) for rows in part.loads.values() for experts in rows.values())
        stages_text = f", in {len(steps)} stages" if len(steps) > 1 else ""
        return Outcome(
            changed=True,
            layout_version=moved.version,
            reason=text + stages_text,
            layers=proposal.layers,
            replicas_loaded=done,
        )

    def _stages(self, proposal: Proposal, moe: Sequence[Lease]) -> tuple[list[list[int]], str]:
        """Layers that change together, in turn; or none, and why."""
        from janus_placement import stages

        moving = {v.layer: v.loads for v in proposal.layers if v.go}
        steps, never = stages(moving, [lease.beside for lease in moe])
        if never:
            return (
                [],
                f"layer {never[0]} alone loads more on a worker than it can hold beside what it serves (--beside)",
            )
        if len(steps) > 1 and proposal.saved_s <= len(steps) * proposal.switch_s:
            return [], (
                f"memory is short, so that it takes {len(steps)} switches: they cost "
                f"{len(steps) * proposal.switch_s:.2f} s and all layers save {proposal.saved_s:.2f} s together"
            )
        return steps, ""

    async def _switch(
        self, proposal: Proposal, moe: list[Lease], cohort: CohortRecord
    ) -> tuple[str, LayoutRecord | None]:
        """Load beside, then publish; or why not, with what was loaded let go."""
        failure = await self._load(proposal, moe)
        moved = None
        if not failure:
            try:
                moved = await self._publisher.relayout(cohort.epoch, proposal.placement)
                failure = "" if moved else f"epoch {cohort.epoch} is not in force any more"
            except JanusError as error:  # Redis is away, or another scheduler is in office
                failure = str(error)
        if moved is None:
            await self._let_go(proposal, moe)
        return failure, moved

    async def _taken_up(self, before: CohortRecord) -> CohortRecord:
        """The cohort that :meth:`_switch` published, once every MoE worker runs it and has let go of what it no longer
        hosts; or after a while."""
        cohort, until = self._publisher.cohort or before, time.monotonic() + _TAKE_UP_S
        while time.monotonic() < until:
            leases = await self._leases(cohort)
            if leases is None or all(lease.epoch >= cohort.epoch for lease in leases):
                break  # or one is gone, which loading finds out
            await asyncio.sleep(0.05)
        return cohort

    # Statistics -------------------------------------------------------------------------------

    async def _collect(self) -> None:
        from janus_placement import Report, ReportError, RoutingWindow

        known = self._known
        while True:
            known.position, entries = await self._coordination.read_routing(known.position)
            if not entries:
                return
            for fields in entries:
                try:
                    report = Report.from_fields(fields)
                    experts, top_k = len(report.counts), report.samples.shape[1]
                    if known.window is None or not known.window.fits(experts, top_k):
                        known.window = RoutingWindow(
                            experts, top_k, half_life_s=self._half_life_s, clock=time.monotonic
                        )
                    known.window.add(report)
                    known.news = True
                except ReportError as error:
                    if str(error) != known.complained:  # once per cause, not once per report
                        known.complained = str(error)
                        log.error("the routing stream holds what Janus did not write, ignored: %s", error)

    async def _leases(self, cohort: CohortRecord) -> list[Lease] | None:
        leases = {w.member: w for w in await self._coordination.workers("moe")}
        found = [leases.get(m.member) for m in cohort.moe]
        return None if None in found else [lease for lease in found if lease is not None]

    async def _propose(
        self, window: RoutingWindow, moe: list[Lease], cohort: CohortRecord, layout: LayoutRecord
    ) -> Proposal:
        from janus_scheduler.proposal import propose

        prices = await self._prices(moe)
        pool = pool_of(moe, self._min_replicas)
        return await asyncio.to_thread(
            propose, window, pool, layout.placement, prices, cohort.scheduling, seed=layout.version
        )

    def _demanded(
        self, target: Sequence[Placement], moe: list[Lease], cohort: CohortRecord, layout: LayoutRecord
    ) -> Proposal:
        from janus_placement import PlacementError

        from janus_scheduler.proposal import demanded

        window = self._known.window
        if window is not None and window.num_experts != layout.num_experts:
            window = None
        try:
            return demanded(
                window, pool_of(moe, self._min_replicas), layout.placement, target, cohort.scheduling,
                seed=layout.version,
            )  # fmt: skip
        except PlacementError as error:
            raise InvalidArgument(str(error), field="placement") from error

    async def _prices(self, moe: list[Lease]) -> Prices:
        """What the workers measured in the last minute; without steps, nothing is worth moving."""
        from janus_placement import Prices

        per_expert, steps = 0.0, 0.0
        for lease in moe:
            samples = await self._coordination.read_stats(lease.worker_id, window_s=STATS_WINDOW_S)
            if len(samples) < 2:
                continue
            ends = _Ends(samples[0], samples[-1])
            seconds = ends.last.time_s - ends.first.time_s
            if seconds > 0 and ends.rate("a_max_sum") > 0:
                # The fullest instance's time is what a_max decides: the largest of them.
                per_expert = max(per_expert, ends.rate("moe_seconds") / ends.rate("a_max_sum"))
                steps = max(steps, ends.rate("steps") / seconds)
        return Prices(
            seconds_per_expert=per_expert, steps_per_second=steps, load_seconds=self._known.load_s,
            switch_seconds=await self._switch_s(), horizon_s=self._horizon_s,
        )  # fmt: skip

    async def _switch_s(self) -> float:
        """What a switch costs: half what was thought so far, half the mean of those since the last look, as the
        attention worker that they delayed most counted them."""
        known, means = self._known, []
        for lease in await self._coordination.workers("attention"):
            samples = await self._coordination.read_stats(lease.worker_id, window_s=STATS_WINDOW_S)
            if not samples:
                continue
            values = samples[-1].values
            now = values.get("layout_switches", 0.0), values.get("layout_switch_seconds", 0.0)
            before = known.switches.get(lease.worker_id, (0.0, 0.0))
            if now[0] < before[0]:  # it was started again
                before = (0.0, 0.0)
            known.switches[lease.worker_id] = now
            if now[0] > before[0]:
                means.append((now[1] - before[1]) / (now[0] - before[0]))
        if means:
            low, high = _SWITCH_S
            known.switch_s = 0.5 * (known.switch_s + min(high, max(low, *means)))
        return known.switch_s

    # Moving -----------------------------------------------------------------------------------

    async def _load(self, proposal: Proposal, moe: list[Lease]) -> str:
        """Have every worker load its part, at once; why not, or an empty text."""
        began = time.monotonic()
        jobs = [self._ask_to_load(moe[rank], layers) for rank, layers in proposal.loads.items()]
        failures = [text for text in await asyncio.gather(*jobs) if text]
        count = sum(len(experts) for layers in proposal.loads.values() for experts in layers.values())
        if count and not failures:
            self._known.load_s = 0.5 * (self._known.load_s + (time.monotonic() - began) / count)
        return "; ".join(failures)

    async def _ask_to_load(self, lease: Lease, layers: dict[int, list[int]]) -> str:
        request = moe_pb2.LoadExpertsRequest(layers=_rows(layers))
        try:
            async with connect(lease.grpc_address, self._settings) as channel:
                await moe_pb2_grpc.ExpertServiceStub(channel).LoadExperts(request, timeout=LOAD_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return f"{lease.worker_id}: {from_rpc_error(error)}"
        return ""

    async def _let_go(self, proposal: Proposal, moe: list[Lease]) -> None:
        async def ask(lease: Lease, layers: dict[int, list[int]]) -> None:
            request = moe_pb2.UnloadExpertsRequest(layers=_rows(layers))
            # One that is gone has let go; one whose new layout uses them keeps them.
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with connect(lease.grpc_address, self._settings) as channel:
                    await moe_pb2_grpc.ExpertServiceStub(channel).UnloadExperts(request, timeout=_UNLOAD_S)

        await asyncio.gather(*(ask(moe[rank], layers) for rank, layers in proposal.loads.items()))


def _rows(layers: dict[int, list[int]]) -> list[moe_pb2.LayerExperts]:
    return [moe_pb2.LayerExperts(layer=layer, experts=experts) for layer, experts in layers.items()]


def _summary(proposal: Proposal, loads: int) -> str:
    """For people and logs."""
    if not proposal.layers:
        return "too little routing was sampled yet"
    before, after, bound = (
        sum(getattr(v, name) for v in proposal.layers) / len(proposal.layers)
        for name in ("a_max_before", "a_max_after", "lower_bound")
    )
    moving = sum(v.go for v in proposal.layers)
    if not moving:
        why = proposal.layers[0].reason if len(proposal.layers) == 1 else _most_common(proposal)
        return f"the placement stays: a_max {before:.2f}, bound {bound:.2f}; {why}"
    text = f"{loads} replicas to load in {moving} of {len(proposal.layers)} layers"
    if not before:  # nothing was sampled of what was asked for
        return text
    return f"{text}; expected a_max {before:.2f} -> {after:.2f}, bound {bound:.2f}"


def _most_common(proposal: Proposal) -> str:
    best = max(proposal.layers, key=lambda v: v.a_max_before - v.lower_bound)
    return f"layer {best.layer}, the farthest from its bound: {best.reason}"
