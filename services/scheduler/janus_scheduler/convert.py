"""Records to and from protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from janus_runtime.records import CohortMember, CohortRecord, LayoutRecord, Lease, Role
from janus_wire.v1 import common_pb2

_ROLES = {
    Role.GATEWAY: common_pb2.WORKER_ROLE_GATEWAY,
    Role.ATTENTION: common_pb2.WORKER_ROLE_ATTENTION,
    Role.MOE: common_pb2.WORKER_ROLE_MOE,
    Role.SCHEDULER: common_pb2.WORKER_ROLE_SCHEDULER,
    Role.AUTOSCALER: common_pb2.WORKER_ROLE_AUTOSCALER,
}
_GATING = {"moe": common_pb2.GATING_MOE, "attention": common_pb2.GATING_ATTENTION}
_POLICIES = {
    "optimal": common_pb2.SCHEDULING_POLICY_OPTIMAL,
    "aebs": common_pb2.SCHEDULING_POLICY_AEBS,
    "token-balanced": common_pb2.SCHEDULING_POLICY_TOKEN_BALANCED,
    "random": common_pb2.SCHEDULING_POLICY_RANDOM,
}
POLICY_NAMES = {number: name for name, number in _POLICIES.items()}


def to_worker(member: CohortMember, role: Role, lease: Lease | None) -> common_pb2.Worker:
    """A row of the cohort, with what its lease adds; ``lease`` None: it is gone."""
    worker = common_pb2.Worker(
        worker_id=member.worker_id,
        member=member.member,
        role=_ROLES[role],
        grpc_address=member.grpc_address,
        node=member.node,
        state="gone",
    )
    if lease is not None:
        worker.state, worker.detail = lease.state.value, lease.detail
        worker.pid, worker.slots, worker.http_address = lease.pid, lease.slots, lease.http_address
    return worker


def to_cohort(record: CohortRecord, leases: Mapping[int, Lease]) -> common_pb2.Cohort:
    """``leases`` by member number."""
    return common_pb2.Cohort(
        epoch=record.epoch,
        attention=[to_worker(m, Role.ATTENTION, leases.get(m.member)) for m in record.attention],
        moe=[to_worker(m, Role.MOE, leases.get(m.member)) for m in record.moe],
        layout_version=record.layout_version,
        gating=_GATING.get(record.gating, common_pb2.GATING_UNSPECIFIED),
        scheduling=_POLICIES.get(record.scheduling, common_pb2.SCHEDULING_POLICY_UNSPECIFIED),
        model=record.model,
    )


def to_layout(record: LayoutRecord) -> common_pb2.Layout:
    """One LayerPlacement per MoE layer."""
    return common_pb2.Layout(
        version=record.version,
        num_experts=record.num_experts,
        slots=record.slots,
        layers=[to_layer(layer) for layer in record.placement],
    )


def to_layer(placement: Sequence[Sequence[int]]) -> common_pb2.LayerPlacement:
    """One MoE layer's part."""
    return common_pb2.LayerPlacement(
        instances=[common_pb2.InstancePlacement(experts=experts) for experts in placement]
    )
