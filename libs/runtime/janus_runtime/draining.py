"""Draining one worker from outside: asked until it holds nothing and is asked nothing, so that it may be stopped."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from janus_wire.v1 import attention_pb2, attention_pb2_grpc, moe_pb2, moe_pb2_grpc

from janus_runtime.channel import connect
from janus_runtime.errors import JanusError
from janus_runtime.records import CohortRecord, Lease, Role, WorkerState
from janus_runtime.settings import ServiceSettings

_CALL_S = 5.0


def left_cohort(lease: Lease | None, members: Iterable[int]) -> bool:
    """Whether a draining worker steps no more: its lease is gone or the cohort in force is without it."""
    return lease is None or (lease.state is WorkerState.DRAINING and lease.member not in set(members))


async def still_held(
    lease: Lease, cohort: CohortRecord | None, settings: ServiceSettings | None = None
) -> str:
    """Ask the worker to drain; what it still waits for, empty when it may be stopped.

    An attention worker hands its streams over, then it leaves with the next epoch as a MoE worker does, unless it is
    the only one. Ask again, with the lease and the cohort as they then are, until the answer is empty.
    """
    if lease.state is WorkerState.STARTING:
        return ""
    try:
        async with connect(lease.grpc_address, settings) as channel:
            if lease.role is Role.ATTENTION:
                answer = await attention_pb2_grpc.AttentionServiceStub(channel).Drain(
                    attention_pb2.AttentionServiceDrainRequest(hand_over=True), timeout=_CALL_S
                )
                if answer.sequences_left:
                    return f"{answer.sequences_left} streams to hand over"
                stepping = [m.member for m in cohort.attention] if cohort else []
                gone = len(stepping) < 2 or left_cohort(lease, stepping)
                return "" if gone else "it steps until the next epoch"
            await moe_pb2_grpc.ExpertServiceStub(channel).Drain(
                moe_pb2.ExpertServiceDrainRequest(), timeout=_CALL_S
            )
    except grpc.aio.AioRpcError as error:
        return f"it does not answer ({error.code().name})"
    except JanusError as error:
        return error.message
    gone = left_cohort(lease, [m.member for m in cohort.moe] if cohort else [])
    return "" if gone else "the cohort still needs it"
