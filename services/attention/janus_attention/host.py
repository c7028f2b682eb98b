"""The attention worker's control process."""

from __future__ import annotations

import asyncio
from typing import Any

from janus_models.config import load_config
from janus_models.fingerprint import fingerprint
from janus_models.generation import end_ids
from janus_runtime.records import Role
from janus_runtime.server import GrpcServer
from janus_runtime.shared_folder import shared_folder, tidy
from janus_wire.v1 import attention_pb2_grpc
from janus_worker.host import WorkerHost
from janus_worker.link import Message

from janus_attention.config import AttentionSettings
from janus_attention.moving import KvMover
from janus_attention.service import AttentionServicer
from janus_attention.streams import Streams
from janus_attention.validate import Limits

_REPORTED = (
    "steps", "step_seconds", "attention_seconds", "exchange_seconds", "moe_seconds", "generated_tokens",
    "prompt_tokens", "running", "waiting", "requests", "preemptions", "exchange_bytes_sent",
    "exchange_bytes_received", "prefix_hit_tokens", "prefix_lookup_tokens", "requests_started", "queue_seconds",
    "drafted_tokens", "accepted_tokens", "step_tokens", "context_tokens", "prepare_seconds", "deliver_seconds",
    "kv_tokens_capacity", "sequences_capacity", "resumed_requests", "finished_requests", "finished_tokens",
    "layout_switches", "layout_switch_seconds",
)  # fmt: skip


_TIDY_S = 15.0


async def _keep_tidy() -> None:
    """What engines that died have left for others goes after a while."""
    while True:
        await asyncio.to_thread(tidy)
        await asyncio.sleep(_TIDY_S)


class AttentionHost(WorkerHost[AttentionSettings]):
    """Lease, cohort, AttentionService."""

    role = Role.ATTENTION
    engine_module = "janus_attention.engine_main"

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings)
        self.streams = Streams()
        self.mover = KvMover(self, self.fingerprint())
        self._config = load_config(settings.checked_model())
        self._end_ids = end_ids(self._config)

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        config = self._config
        return Limits(vocab_size=config.vocab_size, context=self.hello["context"], eos_ids=self._end_ids)

    def fingerprint(self) -> str:
        settings = self.settings
        return settings.cohort_key(fingerprint(settings.checked_model(), settings.dtype))

    def engine_options(self) -> dict[str, Any]:
        settings = self.settings
        return {
            **settings.worker_options(),
            "kv_tokens": settings.kv_tokens,
            "block_size": settings.block_size,
            "max_sequences": settings.max_sequences,
            "trace_every": settings.trace_every,
            "prefix_cache": settings.prefix_cache,
            "cache_seed": self.fingerprint(),
            "prefill_tokens": settings.prefill_tokens,
            "max_stall": settings.max_stall,
            "draft_tokens": settings.draft_tokens,
            "micro_batches": settings.micro_batches,
            "wire_dtype": settings.wire_dtype,
            "emulated_token_us": settings.emulated_token_us,
            "cuda_graphs": settings.cuda_graphs,
            "kv_shelf_mb": settings.kv_shelf_mb,
            "kv_shelf_folder": str(shared_folder(settings.redis_url, settings.namespace)),
            "kv_shelf_node": settings.node,
        }

    async def _run(self) -> None:
        tidying = asyncio.ensure_future(_keep_tidy())
        try:
            await super()._run()
        finally:
            tidying.cancel()
            await asyncio.gather(tidying, return_exceptions=True)

    def add_services(self, server: GrpcServer) -> None:
        server.add(
            attention_pb2_grpc.add_AttentionServiceServicer_to_server,
            AttentionServicer(self),
            "janus.v1.AttentionService",
        )

    def lease_fields(self) -> dict[str, Any]:
        return {"moe_layers": self.hello["moe_layers"], "num_experts": self.hello["num_experts"]}

    async def leave(self) -> None:
        await self.drain()
        handed = self.streams.hand_over()
        if not self.others:
            await self.streams.wait_empty()
            return  # no cohort can be without it, and its streams wait for it to come back
        await asyncio.gather(self.streams.wait_empty(), self.mover.linger(handed))
        await self.emptied()
        await self._left_cohort()

    @property
    def others(self) -> bool:
        """Whether the cohort has another attention worker."""
        cohort = self.cohort
        return cohort is not None and any(m.member != self.lease.member for m in cohort.attention)

    async def emptied(self) -> None:
        """Draining, and without a stream: say that it may leave the cohort."""
        await self._tell(drained=True)

    async def on_message(self, message: Message) -> None:
        body = message.body
        if body.get("t") == "tokens":
            self.streams.deliver(message)
        elif body.get("t") == "kv_taken":
            self.mover.taken(body["number"], body["blocks"])
        elif body.get("t") == "kv_given":
            self.mover.given(body["member"], body["number"])
        else:
            await super().on_message(message)

    async def on_stats(self) -> None:
        stats = self.stats
        await self.set_load(running=int(stats["running"]), waiting=int(stats["waiting"]))
        await self.publish({"epoch": self.lease.epoch, **{name: stats.get(name, 0.0) for name in _REPORTED}})
