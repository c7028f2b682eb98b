"""The MoE worker's control process."""

from __future__ import annotations

from typing import Any

from janus_models.fingerprint import fingerprint
from janus_runtime.records import Role
from janus_runtime.server import GrpcServer
from janus_wire.v1 import moe_pb2_grpc
from janus_worker.host import WorkerHost
from janus_worker.link import Message

from janus_moe.config import MoeSettings
from janus_moe.service import ExpertServicer

_REPORTED = (
    "steps", "layer_passes", "tokens", "expert_calls", "expert_tokens", "a_max_sum", "moe_seconds",
    "schedule_seconds", "wait_seconds", "exchange_bytes_sent", "exchange_bytes_received",
)  # fmt: skip


class MoeHost(WorkerHost[MoeSettings]):
    """Lease, cohort, ExpertService."""

    role = Role.MOE
    engine_module = "janus_moe.engine_main"

    def fingerprint(self) -> str:
        settings = self.settings
        return settings.cohort_key(fingerprint(settings.checked_model(), settings.dtype))

    def engine_options(self) -> dict[str, Any]:
        return {
            **self.settings.worker_options(),
            "emulated_expert_us": self.settings.emulated_expert_us,
            "beside": self.settings.beside,
        }

    def add_services(self, server: GrpcServer) -> None:
        server.add(
            moe_pb2_grpc.add_ExpertServiceServicer_to_server, ExpertServicer(self), "janus.v1.ExpertService"
        )

    def lease_fields(self) -> dict[str, Any]:
        experts = self.hello["num_experts"]
        return {
            "slots": min(self.settings.slots or experts, experts),
            "beside": self.settings.beside,
            "moe_layers": self.hello["moe_layers"],
            "num_experts": experts,
        }

    async def leave(self) -> None:
        await self.drain()
        await self._left_cohort()

    async def on_message(self, message: Message) -> None:
        if message.body.get("t") != "routing":
            await super().on_message(message)
            return
        fields, offset = {}, 0
        for name, size in message.body["sizes"].items():
            fields[name] = message.blob[offset : offset + size]
            offset += size
        await self.publish_routing(fields)

    async def on_stats(self) -> None:
        await self.publish({name: self.stats.get(name, 0.0) for name in _REPORTED})
