"""KEDA's external-scaler contract: KEDA asks here how many replicas a workload should have.

Two ScaledObjects, one per pool, each with ``pool: attention`` or ``pool: moe`` in its metadata. The metric is the size
decided on and its target is 1, so that the autoscaler behind KEDA asks for as many replicas as the metric says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from janus_runtime.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from janus_wire.keda import externalscaler_pb2 as pb
from janus_wire.keda import externalscaler_pb2_grpc

from janus_autoscaler.loop import Autoscaler

POOLS = ("attention", "moe")


class ExternalScaler(externalscaler_pb2_grpc.ExternalScalerServicer):
    """The servicer."""

    def __init__(self, autoscaler: Autoscaler) -> None:
        self._autoscaler = autoscaler

    async def IsActive(self, request: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        """Always: a mesh has a floor of at least one worker in each pool."""
        _pool(request)
        return pb.IsActiveResponse(result=True)

    async def StreamIsActive(
        self, request: pb.ScaledObjectRef, context: Any
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """Once; it never changes. The stream stays open, as KEDA expects."""
        _pool(request)
        yield pb.IsActiveResponse(result=True)
        await asyncio.Event().wait()  # until the call is cancelled

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        """One metric, of which one unit is one replica."""
        name = _metric(_pool(request))
        return pb.GetMetricSpecResponse(
            metricSpecs=[pb.MetricSpec(metricName=name, targetSize=1, targetSizeFloat=1.0)]
        )

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        """The size decided on. FAILED_PRECONDITION unless the mode is act, UNAVAILABLE before the first decision and
        from an autoscaler that stands by for another: KEDA then leaves the workload as it is."""
        pool = _pool(request.scaledObjectRef)
        if request.metricName and not request.metricName.endswith(_metric(pool)):
            raise NotFound(
                "is no metric", field="metricName", value=request.metricName, allowed=_metric(pool)
            )
        settings, target = self._autoscaler.settings, self._autoscaler.state.target
        if settings.mode != "act" or settings.actuator != "keda":
            raise FailedPrecondition(
                f"the autoscaler runs with --mode {settings.mode} --actuator {settings.actuator}",
                next_step="Give it --mode act --actuator keda to let KEDA act.",
            )
        if not self._autoscaler.may_act:
            raise Unavailable(f"this one is {self._autoscaler.describe()}", retry_after_s=5.0)
        if target is None:
            raise Unavailable(f"nothing is decided yet: {self._autoscaler.state.status}", retry_after_s=5.0)
        size = target[POOLS.index(pool)]
        return pb.GetMetricsResponse(
            metricValues=[pb.MetricValue(metricName=_metric(pool), metricValue=size, metricValueFloat=size)]
        )


def _metric(pool: str) -> str:
    return f"janus-{pool}-workers"


def _pool(ref: pb.ScaledObjectRef) -> str:
    pool = ref.scalerMetadata.get("pool", "")
    if pool not in POOLS:
        raise InvalidArgument(
            "is no pool", field="scalerMetadata.pool", value=pool, allowed=", ".join(POOLS),
            next_step=f"Set it in the trigger's metadata of ScaledObject {ref.namespace}/{ref.name}.",
        )  # fmt: skip
    return pool
