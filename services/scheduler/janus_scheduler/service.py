"""SchedulerService: answers from what is published; only the Publisher writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from janus_runtime.coordination import Coordination
from janus_runtime.errors import FailedPrecondition, NotFound, Unavailable
from janus_runtime.records import CohortRecord, LayoutRecord
from janus_wire.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc

from janus_scheduler.convert import to_cohort, to_layer, to_layout
from janus_scheduler.publisher import Publisher
from janus_scheduler.rebalancer import Rebalancer


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The servicer; every scheduler answers, in office or standing by."""

    def __init__(self, coordination: Coordination, publisher: Publisher, rebalancer: Rebalancer) -> None:
        self._coordination = coordination
        self._publisher = publisher
        self._rebalancer = rebalancer

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
        """Look for a placement that pays, or take the one given, and move unless ``dry_run``; only the scheduler in
        office moves."""
        if not (request.dry_run or self._publisher.in_office):
            raise FailedPrecondition(
                f"this scheduler stands by; in office is {await self._coordination.leader() or 'nobody'}",
                reason="NOT_IN_OFFICE", next_step="Ask the scheduler in office, or with dry_run.",
            )  # fmt: skip
        target = [tuple(tuple(row.experts) for row in layer.instances) for layer in request.placement]
        outcome = await self._rebalancer.rebalance(dry_run=request.dry_run, target=target)
        return scheduler_pb2.RebalanceResponse(
            changed=outcome.changed, layout_version=outcome.layout_version, reason=outcome.reason,
            replicas_loaded=outcome.replicas_loaded,
            layers=[
                scheduler_pb2.LayerVerdict(
                    layer=v.layer, a_max_before=v.a_max_before, a_max_after=v.a_max_after,
                    lower_bound=v.lower_bound, moves=v.go, reason=v.reason, replicas=len(v.loads),
                    proposed=to_layer(v.proposed) if v.go else None,
                )
                for v in outcome.layers
            ],
        )  # fmt: skip

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
