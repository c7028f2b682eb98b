"""ExpertService: control of one MoE worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
from janus_runtime.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from janus_wire.v1 import common_pb2, moe_pb2, moe_pb2_grpc
from janus_worker.wire import worker_message

if TYPE_CHECKING:
    from janus_moe.host import MoeHost

_LOAD_S = 300.0
_UNLOAD_S = 10.0
_COUNTERS = (
    "steps", "layer_passes", "tokens", "expert_calls", "expert_tokens", "a_max_sum", "exchange_bytes_sent",
    "exchange_bytes_received", "experts_hosted", "expert_bytes", "rejected_messages", "exchange_messages_sent",
    "internode_messages_sent", "internode_bytes_sent",
)  # fmt: skip


class ExpertServicer(moe_pb2_grpc.ExpertServiceServicer):
    """Answers from the engine's last report, and passes loads on to it."""

    def __init__(self, host: MoeHost) -> None:
        self._host = host

    async def LoadExperts(
        self, request: moe_pb2.LoadExpertsRequest, context: grpc.aio.ServicerContext
    ) -> moe_pb2.LoadExpertsResponse:
        """Map experts and read their pages ahead of a layout that will use them; RESOURCE_EXHAUSTED beyond
        ``--beside``."""
        reply = await self._host.call({"t": "load", "layers": self._layers(request.layers)}, _LOAD_S)
        if room := reply.get("room"):
            raise ResourceExhausted(
                f"{self._host.settings.worker_id} would hold {reply['held']} experts beside those that it serves",
                field="layers", value=reply["held"], allowed=f"at most {room} (--beside)", reason="NO_ROOM",
                next_step="Load fewer at a time: a few layers, switch, then the next.",
            )  # fmt: skip
        if reply["error"]:
            raise Internal(
                f"{self._host.settings.worker_id} could not load experts: {reply['error']}", reason="LOAD_FAILED",
                next_step="Look at the worker's log and its checkpoint; the layout in force is unchanged.",
            )  # fmt: skip
        return moe_pb2.LoadExpertsResponse(loaded=reply["count"], bytes=reply["bytes"])

    async def UnloadExperts(
        self, request: moe_pb2.UnloadExpertsRequest, context: grpc.aio.ServicerContext
    ) -> moe_pb2.UnloadExpertsResponse:
        """Let go of experts; FAILED_PRECONDITION names those that the layout in force places here."""
        reply = await self._host.call({"t": "unload", "layers": self._layers(request.layers)}, _UNLOAD_S)
        if reply["used"]:
            raise FailedPrecondition(
                f"the layout in force places these (MoE layer, expert) here: {reply['used']}",
                reason="EXPERT_IN_USE", next_step="Move them to another worker with a new layout first.",
            )  # fmt: skip
        return moe_pb2.UnloadExpertsResponse(unloaded=reply["count"])

    async def Drain(
        self, request: moe_pb2.ExpertServiceDrainRequest, context: grpc.aio.ServicerContext
    ) -> moe_pb2.ExpertServiceDrainResponse:
        """Leave at the next epoch: the scheduler forms it without workers that drain."""
        await self._host.drain()
        return moe_pb2.ExpertServiceDrainResponse()

    async def GetStats(
        self, request: moe_pb2.ExpertServiceGetStatsRequest, context: grpc.aio.ServicerContext
    ) -> moe_pb2.ExpertServiceGetStatsResponse:
        """Counters of the engine's last report, at most a second old while it steps."""
        host, stats = self._host, self._host.stats
        counters: dict[str, Any] = {name: int(stats.get(name, 0)) for name in _COUNTERS}
        return moe_pb2.ExpertServiceGetStatsResponse(
            worker=worker_message(host.lease), epoch=host.lease.epoch, layout_version=host.layout_version,
            moe_seconds=stats.get("moe_seconds", 0.0), schedule_seconds=stats.get("schedule_seconds", 0.0),
            wait_seconds=stats.get("wait_seconds", 0.0), transport=host.hello.get("transport", ""),
            layer_groups=[moe_pb2.LayerGroupStats(**group) for group in stats.get("layer_groups", ())],
            schedule_latency=common_pb2.Histogram(**stats.get("schedule_latency", {})), **counters,
        )  # fmt: skip

    def _layers(self, layers: Iterable[moe_pb2.LayerExperts]) -> list[tuple[int, list[int]]]:
        hello = self._host.hello
        self._host.engine  # noqa: B018 - raises Unavailable while it loads
        checked = []
        for row in layers:
            if row.layer >= hello["moe_layers"]:
                raise InvalidArgument(
                    "no such MoE layer",
                    field="layers.layer",
                    value=row.layer,
                    allowed=f"0..{hello['moe_layers'] - 1}",
                )
            for expert in row.experts:
                if expert >= hello["num_experts"]:
                    raise InvalidArgument(
                        "no such expert", field="layers.experts", value=expert,
                        allowed=f"0..{hello['num_experts'] - 1}",
                    )  # fmt: skip
            checked.append((row.layer, list(row.experts)))
        return checked
