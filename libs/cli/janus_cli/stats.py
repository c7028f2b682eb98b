"""What workers count, asked of each over gRPC (GetStats)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from janus_runtime.channel import connect
from janus_runtime.records import Lease, Role
from janus_wire.v1 import attention_pb2, attention_pb2_grpc, moe_pb2, moe_pb2_grpc

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """Counters since the worker's start."""

    worker_id: str
    role: Role
    steps: int = 0
    prompt_tokens: int = 0
    """Attention workers."""
    generated_tokens: int = 0
    """Attention workers."""
    expert_calls: int = 0
    """MoE workers: distinct activated experts computed, summed over layers and steps."""
    expert_tokens: int = 0
    """MoE workers: expert-token pairs computed."""
    mean_a_max: float = 0.0
    """MoE workers: mean over layer passes of the busiest instance's distinct experts."""
    bytes_sent: int = 0
    """Over the exchange."""
    bytes_received: int = 0
    """Over the exchange."""
    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_capacity: int = 0
    step_seconds: float = 0.0
    """Attention workers: time in steps. MoE workers: time computing."""
    exchange_seconds: float = 0.0
    """Attention workers: time waiting for the MoE side."""
    transport: str = ""
    """Transports really in use."""
    error: str = ""
    """Why there are no numbers."""


async def gather_stats(leases: Sequence[Lease]) -> list[WorkerStats]:
    """One for each attention and MoE lease, in order; a worker that does not answer has ``error`` set."""
    asked = [lease for lease in leases if lease.role in (Role.ATTENTION, Role.MOE)]
    return list(await asyncio.gather(*(_ask(lease) for lease in asked)))


async def _ask(lease: Lease) -> WorkerStats:
    async with connect(lease.grpc_address) as channel:
        try:
            if lease.role is Role.ATTENTION:
                return await _attention(lease, attention_pb2_grpc.AttentionServiceStub(channel))
            return await _moe(lease, moe_pb2_grpc.ExpertServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            return WorkerStats(
                worker_id=lease.worker_id, role=lease.role, error=f"{error.code().name}: {error.details()}"
            )


async def _attention(lease: Lease, stub: attention_pb2_grpc.AttentionServiceStub) -> WorkerStats:
    got = await stub.GetStats(attention_pb2.AttentionServiceGetStatsRequest(), timeout=_TIMEOUT_S)
    return WorkerStats(
        worker_id=lease.worker_id, role=lease.role, steps=got.steps, prompt_tokens=got.prompt_tokens,
        generated_tokens=got.generated_tokens, bytes_sent=got.exchange_bytes_sent,
        bytes_received=got.exchange_bytes_received, running=got.running, waiting=got.waiting,
        kv_tokens_used=got.kv_tokens_used, kv_tokens_capacity=got.kv_tokens_capacity,
        step_seconds=got.step_seconds, exchange_seconds=got.exchange_seconds, transport=got.transport,
    )  # fmt: skip


async def _moe(lease: Lease, stub: moe_pb2_grpc.ExpertServiceStub) -> WorkerStats:
    got = await stub.GetStats(moe_pb2.ExpertServiceGetStatsRequest(), timeout=_TIMEOUT_S)
    return WorkerStats(
        worker_id=lease.worker_id, role=lease.role, steps=got.steps, expert_calls=got.expert_calls,
        expert_tokens=got.expert_tokens, mean_a_max=got.a_max_sum / max(1, got.layer_passes),
        bytes_sent=got.exchange_bytes_sent, bytes_received=got.exchange_bytes_received,
        step_seconds=got.moe_seconds, transport=got.transport,
    )  # fmt: skip
