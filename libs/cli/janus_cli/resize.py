"""Changing a running mesh: which workers to start and which to drain. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from janus_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from janus_runtime.records import Lease, Role

from janus_cli.view import worker_index

WORKERS_MAX = 1024
ROLES: Mapping[str, Role] = {"attention": Role.ATTENTION, "experts": Role.MOE}
"""What a scale target may name, and what that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Workers to start and to drain, by id, in order."""

    start: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()


def parse_targets(texts: Sequence[str]) -> dict[str, int]:
    """``("attention=2", "experts=4")`` as a mapping. InvalidArgument for anything else."""
    targets: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition("=")
        if name in targets:
            raise InvalidArgument("is given twice", field=name, value=text)
        if name not in ROLES or not count.isdecimal():
            raise InvalidArgument(
                "is no target", field="target", value=text, allowed="attention=COUNT, experts=COUNT"
            )
        targets[name] = int(count)
    check_targets(targets)
    return targets


def check_targets(targets: Mapping[str, object]) -> None:
    """InvalidArgument for what no mesh can have."""
    if not targets:
        raise InvalidArgument("is missing", field="target", allowed="attention=COUNT, experts=COUNT")
    for name, count in targets.items():
        if name not in ROLES:
            raise InvalidArgument("is no target", field="target", value=name, allowed=", ".join(ROLES))
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= WORKERS_MAX:
            raise InvalidArgument("is out of range", field=name, value=count, allowed=f"1..{WORKERS_MAX}")


def plan(running: Iterable[str], leases: Sequence[Lease], targets: Mapping[str, int], slots: int) -> Plan:
    """From the workers that run to the ``targets``: free indices are filled, the highest ones drained.

    ``running``: ids of all workers that are not leaving. ``slots``: what a new MoE worker will have per
    layer; 0: one per expert. FailedPrecondition when the MoE workers left could not hold all experts.
    """
    names = set(running)
    start: list[str] = []
    drain: list[str] = []
    for target, count in targets.items():
        role = ROLES[target]
        here = _of(names, role)
        free = (f"{role}-{i}" for i in range(WORKERS_MAX * 2) if f"{role}-{i}" not in names)
        start += [next(free) for _ in range(count - len(here))]
        drain += reversed(here[count:])
    check_capacity([n for n in (*names, *start) if n not in drain], leases, slots)
    return Plan(start=tuple(start), drain=tuple(drain))


def plan_drain(running: Iterable[str], leases: Sequence[Lease], worker_id: str, slots: int) -> Plan:
    """To drain one worker. NotFound when there is none; FailedPrecondition when it is the last of its role."""
    names = set(running)
    drainable = sorted(_of(names, Role.ATTENTION) + _of(names, Role.MOE))
    if worker_id not in drainable:
        raise NotFound(
            "is no worker that can be drained", field="worker", value=worker_id, allowed=", ".join(drainable)
        )
    role = Role(worker_id.rpartition("-")[0])
    if len(_of(names, role)) == 1:
        raise FailedPrecondition(
            f"{worker_id} is the last {role} worker: a mesh needs at least one",
            reason="LAST_WORKER",
            next_step="Add another first with `janus scale`, or stop the mesh with `janus down`.",
        )
    check_capacity(names - {worker_id}, leases, slots)
    return Plan(drain=(worker_id,))


def check_capacity(names: Iterable[str], leases: Sequence[Lease], slots: int) -> None:
    """FailedPrecondition when the MoE workers among ``names`` have fewer slots than there are experts."""
    experts = max((lease.num_experts for lease in leases), default=0)
    if not experts:
        return  # nobody has said yet how many there are
    known = {lease.worker_id: lease.slots for lease in leases if lease.role is Role.MOE and lease.slots}
    moe = _of(names, Role.MOE)
    offered = [min(known.get(name, slots or experts), experts) for name in moe]
    if sum(offered) < experts:
        each = slots or experts
        raise FailedPrecondition(
            f"{len(moe)} MoE workers have {sum(offered)} expert slots per layer and cannot hold "
            f"{experts} experts",
            reason="TOO_FEW_SLOTS",
            allowed=f"at least {-(-experts // each)} MoE workers of {each} slots",
        )


def _of(names: Iterable[str], role: Role) -> list[str]:
    return sorted((n for n in names if n.rpartition("-")[0] == role.value), key=worker_index)
