"""AttentionService: token ids in, a stream of token ids out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from janus_runtime.errors import ResourceExhausted, Unavailable
from janus_wire.v1 import attention_pb2, attention_pb2_grpc, common_pb2
from janus_worker.link import ChildGone
from janus_worker.wire import worker_message
from opentelemetry import trace

from janus_attention.validate import check_hand_kv, submission

if TYPE_CHECKING:
    from janus_attention.host import AttentionHost

_DRAIN_DEFAULT_S = 300.0
_COUNTERS = (
    "steps", "prompt_tokens", "generated_tokens", "running", "waiting", "kv_tokens_used", "kv_tokens_capacity",
    "exchange_bytes_sent", "exchange_bytes_received", "rejected_messages", "digest_mismatches",
    "exchange_messages_sent", "internode_messages_sent", "internode_bytes_sent",
    "prefix_hit_tokens", "prefix_lookup_tokens", "preemptions", "requests_started", "kv_moved_tokens",
    "kv_kept_tokens", "kv_recovered_tokens",
)  # fmt: skip
_SECONDS = (
    "attention_seconds",
    "exchange_seconds",
    "moe_seconds",
    "step_seconds",
    "queue_seconds",
    "kv_shelf_seconds",
)


class AttentionServicer(attention_pb2_grpc.AttentionServiceServicer):
    """Checks requests, hands them to the engine, streams what comes back."""

    def __init__(self, host: AttentionHost) -> None:
        self._host = host

    async def Generate(
        self, request: attention_pb2.AttentionServiceGenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[attention_pb2.AttentionServiceGenerateResponse]:
        """Tokens after the prompt, one response each. A cancelled call frees the sequence."""
        host = self._host
        engine = host.engine
        if host.draining:
            raise Unavailable(f"{host.settings.worker_id} is draining", reason="DRAINING", retry_after_s=0.1)
        body = submission(request, host.limits)
        if len(host.streams) >= host.settings.max_sequences + host.settings.max_waiting:
            raise ResourceExhausted(
                f"{host.settings.worker_id} has {len(host.streams)} sequences in hand", reason="QUEUE_FULL",
                retry_after_s=1.0, next_step="Retry later, or add attention workers.",
            )  # fmt: skip
        number = host.streams.open()
        finished = False
        try:
            if request.kv_member:
                await host.mover.fetch(body["prompt"] + body["resumed"], request.kv_member)
            await engine.send({**body, "id": number, "trace": _trace_context()})
            if "guide" in body["sampling"]:
                await host.streams.guided(number, host.settings.guide_timeout_s)
            async for response in host.streams.responses(number):
                finished = bool(response.finish_reason)
                yield response
        except ChildGone as error:  # before this process has noticed it: the stream can go on elsewhere
            raise Unavailable(str(error), reason="ENGINE_LOST", retry_after_s=0.1) from error
        finally:
            host.streams.close(number)
            if not finished:
                # The caller went away, or the request failed: the engine may still hold the sequence.
                engine.post({"t": "cancel", "id": number})

    async def Drain(
        self, request: attention_pb2.AttentionServiceDrainRequest, context: grpc.aio.ServicerContext
    ) -> attention_pb2.AttentionServiceDrainResponse:
        """Take nothing new; answer when nothing is left, or shortly before the caller's deadline."""
        await self._host.drain()
        handed = self._host.streams.hand_over() if request.hand_over else 0
        handed = handed if self._host.others else 0
        remaining = context.time_remaining()
        timeout = _DRAIN_DEFAULT_S if remaining is None else max(0.0, remaining - 0.2)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(self._host.streams.wait_empty(), self._host.mover.linger(handed))
        except TimeoutError:
            pass  # the response says how many are left
        if not len(self._host.streams):
            await self._host.emptied()
        return attention_pb2.AttentionServiceDrainResponse(sequences_left=len(self._host.streams))

    async def HandKv(
        self, request: attention_pb2.AttentionServiceHandKvRequest, context: grpc.aio.ServicerContext
    ) -> attention_pb2.AttentionServiceHandKvResponse:
        """Send KV blocks to another attention worker, which goes on with a stream of this one."""
        check_hand_kv(request)
        return attention_pb2.AttentionServiceHandKvResponse(blocks=await self._host.mover.give(request))

    async def GetStats(
        self, request: attention_pb2.AttentionServiceGetStatsRequest, context: grpc.aio.ServicerContext
    ) -> attention_pb2.AttentionServiceGetStatsResponse:
        """Counters of the engine's last report, at most a second old while it steps."""
        host, stats = self._host, self._host.stats
        numbers: dict[str, Any] = {name: int(stats.get(name, 0)) for name in _COUNTERS}
        numbers |= {name: float(stats.get(name, 0.0)) for name in _SECONDS}
        return attention_pb2.AttentionServiceGetStatsResponse(
            worker=worker_message(host.lease), epoch=host.lease.epoch, transport=host.hello.get("transport", ""),
            exchange_latency=common_pb2.Histogram(**stats.get("exchange_latency", {})), **numbers,
        )  # fmt: skip


def _trace_context() -> tuple[str, str] | None:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
