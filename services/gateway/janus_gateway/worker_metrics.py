"""What workers count, for /metrics and the dashboard: asked of each (GetStats) then, never in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from janus_runtime.channel import connect
from janus_runtime.metrics import ATTENTION, AUTOSCALER, BY_NAME, MOE, Metric
from janus_runtime.records import Lease, Role
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import (
    attention_pb2,
    attention_pb2_grpc,
    autoscaler_pb2,
    autoscaler_pb2_grpc,
    moe_pb2,
    moe_pb2_grpc,
)
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

TIMEOUT_S = 2.0
"""A worker that has not answered by then is left out of the scrape, and is not "up"."""

Answer = tuple[Lease, Any]
"""A worker's lease and its GetStats response; None when it did not answer."""

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class WorkerMetrics:
    """Keeps a channel to each worker that it has asked, while the worker has a lease."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def render(self, leases: Sequence[Lease]) -> bytes:
        """Prometheus' text format of all attention and MoE workers, and the autoscaler, among ``leases``."""
        return generate_latest(_Scrape(families(await self.ask(leases))))  # type: ignore[arg-type]

    async def ask(self, leases: Sequence[Lease]) -> list[Answer]:
        """What each attention and MoE worker, and the autoscaler, among ``leases`` counts, in at most TIMEOUT_S."""
        asked = [lease for lease in leases if lease.role in (Role.ATTENTION, Role.MOE, Role.AUTOSCALER)]
        await self._forget({lease.grpc_address for lease in asked})
        answers = await asyncio.gather(*(self._ask(lease) for lease in asked))
        return list(zip(asked, answers, strict=True))

    async def _ask(self, lease: Lease) -> Any:
        channel = self._channels.get(lease.grpc_address)
        if channel is None:
            channel = self._channels[lease.grpc_address] = connect(lease.grpc_address, self._settings)
        try:
            if lease.role is Role.ATTENTION:
                attention = attention_pb2_grpc.AttentionServiceStub(channel)
                return await attention.GetStats(
                    attention_pb2.AttentionServiceGetStatsRequest(), timeout=TIMEOUT_S
                )
            if lease.role is Role.AUTOSCALER:
                autoscaler = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
                return await autoscaler.GetStats(
                    autoscaler_pb2.AutoscalerServiceGetStatsRequest(), timeout=TIMEOUT_S
                )
            moe = moe_pb2_grpc.ExpertServiceStub(channel)
            return await moe.GetStats(moe_pb2.ExpertServiceGetStatsRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None

    async def _forget(self, addresses: set[str]) -> None:
        gone = [address for address in self._channels if address not in addresses]
        await asyncio.gather(*(self._channels.pop(address).close() for address in gone))

    async def close(self) -> None:
        """Close every channel."""
        await self._forget(set())


class _Scrape(Collector):
    """As much of a registry as generate_latest asks for."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._found = list(found)

    def collect(self) -> Iterator[Family]:
        return iter(self._found)


def families(answers: Sequence[Answer]) -> Iterator[Family]:
    """The declared metrics of workers, with the samples of those that answered. Pure."""
    up = BY_NAME["janus_worker_up"]
    family = GaugeMetricFamily(up.name, up.help, labels=up.labels)
    for lease, stats in answers:
        family.add_metric([lease.worker_id, str(lease.role)], float(stats is not None))
    yield family
    for role, metrics in ((Role.ATTENTION, ATTENTION), (Role.MOE, MOE), (Role.AUTOSCALER, AUTOSCALER)):
        there = [
            (lease.worker_id, stats) for lease, stats in answers if lease.role is role and stats is not None
        ]
        for metric in metrics:
            family = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            for worker_id, stats in there:
                for labels, value in _samples(metric, stats):
                    _add(family, [worker_id, *labels], value)
            yield family


def _samples(metric: Metric, stats: Any) -> Iterator[tuple[list[str], Any]]:
    """Labels besides the worker, and the value, of one worker's samples."""
    outer, _, inner = metric.stat.partition(".")
    if not inner:
        yield [], getattr(stats, outer)
        return
    for group in getattr(stats, outer):
        layers = [f"{group.first_layer}-{group.last_layer}"]
        value = getattr(group, inner)
        if "expert" not in metric.labels:
            yield layers, value
            continue
        for expert, count in enumerate(value):
            if count:  # a worker computes few of the experts; the others are zero here for good
                yield [*layers, str(expert)], count


def _add(family: Any, labels: list[str], value: Any) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, value)
        return
    bounds = [*(repr(bound) for bound in value.bounds), "+Inf"]
    below, buckets = 0, []
    for bound, count in zip(bounds, value.counts, strict=False):
        below += count
        buckets.append((bound, below))
    if value.counts:  # an engine that has not reported yet has none
        family.add_metric(labels, buckets, value.sum)
