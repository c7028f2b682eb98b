"""``Schedule``: the workers' own scheduling code on a question from outside, after checking it."""

from __future__ import annotations

import numpy as np
from janus_kernels import ReplicaLayout, schedule
from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2, scheduler_pb2

from janus_scheduler.convert import POLICY_NAMES

MAX_EXPERTS = 1024
MAX_TOP_K = 32
MAX_IDS = 1 << 21
MAX_INSTANCES = 1024
MAX_SLOTS = 1024


def answer(request: scheduler_pb2.ScheduleRequest) -> scheduler_pb2.ScheduleResponse:
    """Check, schedule, answer. InvalidArgument names the field. CPU-bound: call it in a thread."""
    top_k, experts = request.experts_per_token, request.num_experts
    _within("experts_per_token", top_k, 1, MAX_TOP_K)
    _within("num_experts", experts, 1, MAX_EXPERTS)
    placement = _placement(request.placement, experts)
    fullest = max(len(instance) for instance in placement)
    slots = request.slots or max(1, fullest)
    _within("slots", slots, max(1, fullest), MAX_SLOTS)
    policy = POLICY_NAMES.get(request.policy, "optimal")
    if request.policy not in POLICY_NAMES and request.policy != common_pb2.SCHEDULING_POLICY_UNSPECIFIED:
        raise InvalidArgument(
            "unknown policy", field="policy", value=request.policy, allowed=", ".join(POLICY_NAMES.values())
        )
    ids_TK = _ids(request.topk_ids, top_k, experts, placement)
    layout = ReplicaLayout.from_placement([list(i) for i in placement], num_experts=experts, slots=slots)
    result = schedule(ids_TK, layout, policy=policy)
    return scheduler_pb2.ScheduleResponse(
        replica_ids=np.asarray(result.replica_ids).reshape(-1).tolist(),
        instance_load=np.asarray(result.instance_load).tolist(),
        a_max=int(result.a_max),
        slots=slots,
        digest=int(result.digest) & 0xFFFFFFFFFFFFFFFF,
    )


def _within(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument("out of range", field=field, value=value, allowed=f"{low}..{high}")


def _placement(message: common_pb2.LayerPlacement, experts: int) -> list[tuple[int, ...]]:
    placement = [tuple(instance.experts) for instance in message.instances]
    _within("placement.instances", len(placement), 1, MAX_INSTANCES)
    for index, hosted in enumerate(placement):
        field = f"placement.instances[{index}].experts"
        for expert in hosted:
            if expert >= experts:
                raise InvalidArgument(
                    "no such expert", field=field, value=expert, allowed=f"0..{experts - 1}"
                )
        if len(set(hosted)) != len(hosted):
            raise InvalidArgument(
                "hosts an expert twice", field=field, value=list(hosted), allowed="each expert at most once"
            )
    return placement


def _ids(values: object, top_k: int, experts: int, placement: list[tuple[int, ...]]) -> np.ndarray:
    ids = np.fromiter(values, dtype=np.int64)  # type: ignore[call-overload]
    _within("topk_ids (length)", len(ids), 0, MAX_IDS)
    if len(ids) % top_k:
        raise InvalidArgument(
            "is not whole rows", field="topk_ids (length)", value=len(ids), allowed=f"a multiple of {top_k}"
        )
    if len(ids) and int(ids.max()) >= experts:
        where = int(ids.argmax())
        raise InvalidArgument(
            "no such expert", field=f"topk_ids[{where}]", value=int(ids[where]), allowed=f"0..{experts - 1}"
        )
    hosted = np.zeros(experts, dtype=bool)
    hosted[[e for instance in placement for e in instance]] = True
    homeless = np.flatnonzero(~hosted[ids])
    if len(homeless):
        where = int(homeless[0])
        raise InvalidArgument(
            "no instance of the placement hosts this expert",
            field=f"topk_ids[{where}]",
            value=int(ids[where]),
        )
    ids_TK: np.ndarray = ids.astype(np.int32).reshape(-1, top_k)
    return ids_TK
