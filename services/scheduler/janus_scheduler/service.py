"""SchedulerService: answers from what is published; only the Publisher writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from janus_runtime.coordination import Coordination
from janus_runtime.errors import NotFound, Unavailable
from janus_runtime.records import CohortRecord, LayoutRecord
from janus_wire.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc

from janus_scheduler.convert import to_cohort, to_layout
from janus_scheduler.publisher import Publisher, build_layout


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The servicer; every scheduler answers, in office or standing by."""

    def __init__(self, coordination: Coordination, publisher: Publisher) -> None:
        self._coordination = coordination
        self._publisher = publisher

    async def GetCohort(
        self, request: scheduler_pb2.GetCohortRequest, context: Any
    ) -> scheduler_pb2.GetCohortResponse:
        """The cohort in force; Unavailable, with what is missing, before the first."""
        record = await self._cohort()
        if record is None:
            raise Unavailable(
                f"no cohort yet: {self._publisher.status}", reason="NO_COHORT", retry_after_s=1.0,
                next_step="Ask again, or watch with WatchCohort.",
            )  # fmt: skip
        return scheduler_pb2.GetCohortResponse(cohort=await self._to_message(record))

    async def WatchCohort(
        self, request: scheduler_pb2.WatchCohortRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.WatchCohortResponse]:
        """The cohort in force, then each later one."""
        async with contextlib.aclosing(self._coordination.watch_cohort()) as cohorts:
            async for record in cohorts:
                yield scheduler_pb2.WatchCohortResponse(cohort=await self._to_message(record))

    async def GetLayout(
        self, request: scheduler_pb2.GetLayoutRequest, context: Any
    ) -> scheduler_pb2.GetLayoutResponse:
        """By version, or the one in force for 0."""
        version = request.version
        if version == 0:
            record = await self._cohort()
            if record is None:
                raise Unavailable(
                    f"no layout yet: {self._publisher.status}", reason="NO_COHORT", retry_after_s=1.0
                )
            version = record.layout_version
        layout = await self._layout(version)
        if layout is None:
            raise NotFound(
                f"layout version {version} does not exist or is too old", field="version", value=version,
                next_step="Ask for version 0, the layout in force.",
            )  # fmt: skip
        return scheduler_pb2.GetLayoutResponse(layout=to_layout(layout))

    async def Schedule(
        self, request: scheduler_pb2.ScheduleRequest, context: Any
    ) -> scheduler_pb2.ScheduleResponse:
        """What the workers would do with these ids and this placement."""
        # numpy and the kernels are needed for this call alone: start-up stays quick without them.
        from janus_scheduler import whatif

        return await asyncio.to_thread(whatif.answer, request)

    async def Rebalance(
        self, request: scheduler_pb2.RebalanceRequest, context: Any
    ) -> scheduler_pb2.RebalanceResponse:
        """Round robin knows no load: it answers whether the layout in force is what it would make."""
        record = await self._cohort()
        layout = await self._layout(record.layout_version) if record else None
        if record is None or layout is None:
            raise Unavailable(
                f"no layout yet: {self._publisher.status}", reason="NO_COHORT", retry_after_s=1.0
            )
        return scheduler_pb2.RebalanceResponse(
            changed=False, layout_version=layout.version, reason=await self._why_unchanged(record, layout)
        )

    async def _why_unchanged(self, record: CohortRecord, layout: LayoutRecord) -> str:
        leases = {w.member: w for w in await self._coordination.workers("moe")}
        moe = [leases[m.member] for m in record.moe if m.member in leases]
        if len(moe) < len(record.moe):
            return "an MoE worker is gone; the next epoch brings a layout for those that are left"
        if build_layout(moe, layout.version, layout) is layout:
            return (
                "the layout in force is the round-robin placement of this cohort already; placement by "
                "activation statistics is not part of this release"
            )
        return "the workers' slots changed; the next epoch brings a layout for them"

    async def _cohort(self) -> CohortRecord | None:
        try:
            return await self._coordination.cohort()
        except Unavailable:
            if self._publisher.cohort is None:
                raise
            return self._publisher.cohort  # Redis is away; what is in force is still in force

    async def _layout(self, version: int) -> LayoutRecord | None:
        known = self._publisher.layout
        if known is not None and known.version == version:
            return known
        return await self._coordination.layout(version)

    async def _to_message(self, record: CohortRecord) -> common_pb2.Cohort:
        try:
            leases = {w.member: w for w in await self._coordination.workers()}
        except Unavailable:
            leases = {}
        return to_cohort(record, leases)
