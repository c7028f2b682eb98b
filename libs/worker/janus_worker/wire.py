"""Leases as protobuf messages."""

from __future__ import annotations

from janus_runtime.records import Lease, Role
from janus_wire.v1 import common_pb2

_ROLES = {
    Role.GATEWAY: common_pb2.WORKER_ROLE_GATEWAY,
    Role.ATTENTION: common_pb2.WORKER_ROLE_ATTENTION,
    Role.MOE: common_pb2.WORKER_ROLE_MOE,
    Role.SCHEDULER: common_pb2.WORKER_ROLE_SCHEDULER,
    Role.AUTOSCALER: common_pb2.WORKER_ROLE_AUTOSCALER,
}


def worker_message(lease: Lease) -> common_pb2.Worker:
    """``janus.v1.Worker`` of a lease."""
    return common_pb2.Worker(
        worker_id=lease.worker_id, member=lease.member, role=_ROLES[lease.role], grpc_address=lease.grpc_address,
        node=lease.node, state=lease.state.value, detail=lease.detail, pid=lease.pid, slots=lease.slots,
        http_address=lease.http_address,
    )  # fmt: skip
