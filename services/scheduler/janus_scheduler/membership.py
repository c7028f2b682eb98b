"""Who steps together: a pure decision from leases, the cohort in force and the rules.

Nothing here reads a clock or Redis. :func:`decide` answers Keep, Wait (with what is missing) or Form; the
:class:`Settler` holds a Form back until the same answer has stood for the settle time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from janus_runtime.records import CohortMember, CohortRecord, Lease, Role, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a cohort must have."""

    min_attention: int = 1
    """For the first cohort; afterwards a mesh that lost workers goes on with one or more."""
    min_experts: int = 1
    gating: str = "moe"
    scheduling: str = "optimal"
    exchange: str = "auto"
    min_replicas: int = 1
    """Replicas of each expert on distinct workers, as far as the slots allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The cohort in force is right."""

    refused: tuple[str, ...] = ()
    """Why ready workers are left out, one text each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """No cohort can form; the one in force, if any, stands."""

    reason: str
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A new epoch with these members, in rank order."""

    attention: tuple[Lease, ...]
    moe: tuple[Lease, ...]
    reason: str
    refused: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    """Members of the cohort in force that are gone, or why else its steps stand still until the next one. Without any,
    those that are under way can be finished first."""


Decision = Keep | Wait | Form


def decide(
    leases: Iterable[Lease],
    previous: CohortRecord | None,
    rules: Rules,
    *,
    patient: bool = False,
    dead: Collection[int] = (),
) -> Decision:
    """What to do now.

    ``patient``: leases may be missing for want of Redis, not of workers (it has just come back): a member of
    the cohort in force that has no lease is waited for rather than dropped, unless it is among the ``dead``.
    """
    leases = list(leases)
    if patient and previous is not None:
        here = {(lease.worker_id, lease.member) for lease in leases}
        missing = [
            m.worker_id
            for m in _members(previous)
            if (m.worker_id, m.member) not in here and m.member not in dead
        ]
        if missing:
            return Wait(reason=f"Redis lost its records; waiting for {_join(missing)} to renew their leases")
    candidates = _candidates(leases, previous)
    fitting, refused = _compatible(candidates, previous)
    attention = _ranked(
        [w for w in fitting if w.role is Role.ATTENTION], previous.attention if previous else ()
    )
    moe = _ranked([w for w in fitting if w.role is Role.MOE], previous.moe if previous else ())
    moe, leaving = _without_draining(moe)
    attention, drained = _without_drained(attention)
    leaving += drained
    # Who has an epoch has served: the mesh is not starting, its record is lost.
    first = previous is None and not any(lease.epoch for lease in leases)
    missing_text = _missing(attention, moe, leases, first=first, rules=rules)
    if missing_text:
        return Wait(reason=missing_text, refused=refused)
    if previous is not None and _same(previous, attention, moe, rules):
        return Keep(refused=refused)
    return Form(
        attention=attention,
        moe=moe,
        reason=_change(previous, attention, moe, leaving, rules),
        refused=refused,
        lost=_lost(previous, (*attention, *moe), leaving),
    )


def anew(leases: Iterable[Lease], previous: CohortRecord, reason: str) -> Form:
    """The cohort in force under a new epoch, whose members abandon the step under way. All have a lease."""
    of = {lease.member: lease for lease in leases}
    return Form(
        attention=tuple(of[m.member] for m in previous.attention),
        moe=tuple(of[m.member] for m in previous.moe),
        reason=reason,
        lost=(reason,),
    )


def _members(record: CohortRecord) -> tuple[CohortMember, ...]:
    return (*record.attention, *record.moe)


def _candidates(leases: Sequence[Lease], previous: CohortRecord | None) -> list[Lease]:
    """Ready workers, and draining ones that still step in the cohort in force."""
    stepping = {(m.worker_id, m.member) for m in _members(previous)} if previous else set()
    return [
        lease
        for lease in leases
        if lease.role in (Role.ATTENTION, Role.MOE)
        and (
            lease.state is WorkerState.READY
            or (lease.state is WorkerState.DRAINING and (lease.worker_id, lease.member) in stepping)
        )
    ]


def _compatible(
    candidates: list[Lease], previous: CohortRecord | None
) -> tuple[list[Lease], tuple[str, ...]]:
    """Those that serve one model over one transport, and why each of the others does not fit."""
    refused = []
    usable = []
    for lease in candidates:
        problem = _unusable(lease)
        if problem:
            refused.append(f"{lease.worker_id}: {problem}")
        else:
            usable.append(lease)
    if not usable:
        return [], tuple(refused)
    reference = _reference(usable, previous)
    fitting = []
    for lease in usable:
        differences = _differences(lease, reference)
        if differences:
            refused.append(f"{lease.worker_id} does not fit {reference.worker_id}: {differences}")
        else:
            fitting.append(lease)
    return fitting, tuple(refused)


def _unusable(lease: Lease) -> str:
    if lease.role is Role.MOE and lease.slots < 1:
        return "its lease offers no expert slots (slots = 0)"
    if lease.num_experts < 1 or lease.moe_layers < 1:
        return f"its lease names {lease.num_experts} experts in {lease.moe_layers} MoE layers"
    if not lease.transport_address:
        return "its lease has no transport address"
    return ""


_COMPARED = ("model", "num_experts", "moe_layers", "transport")


def _reference(usable: Sequence[Lease], previous: CohortRecord | None) -> Lease:
    """The worker the others must agree with: one of the cohort in force, else one of the largest group."""
    if previous is not None:
        stepping = {(m.worker_id, m.member) for m in _members(previous)}
        for lease in usable:
            if (lease.worker_id, lease.member) in stepping:
                return lease
    groups = Counter(tuple(getattr(lease, name) for name in _COMPARED) for lease in usable)
    largest = max(groups.values())
    # Attention before MoE, then by name: a tie must not depend on who came first.
    ordered = sorted(usable, key=lambda w: (w.role != Role.ATTENTION, _natural(w.worker_id)))
    return next(w for w in ordered if groups[tuple(getattr(w, name) for name in _COMPARED)] == largest)


def _differences(lease: Lease, reference: Lease) -> str:
    return ", ".join(
        f"{name} is {getattr(lease, name)!r}, not {getattr(reference, name)!r}"
        for name in _COMPARED
        if getattr(lease, name) != getattr(reference, name)
    )


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts moe-2 before moe-10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts)


def _ranked(workers: list[Lease], before: Sequence[CohortMember]) -> tuple[Lease, ...]:
    """Old ranks in their order (a restarted worker has its old rank back), then the new ones by name."""
    rank = {m.worker_id: index for index, m in enumerate(before)}
    return tuple(sorted(workers, key=lambda w: (rank.get(w.worker_id, len(rank)), _natural(w.worker_id))))


def _without_draining(moe: tuple[Lease, ...]) -> tuple[tuple[Lease, ...], tuple[str, ...]]:
    """An MoE worker that drains leaves as soon as the others can hold every expert."""
    staying = tuple(w for w in moe if w.state is not WorkerState.DRAINING)
    if staying and _capacity(staying) >= staying[0].num_experts:
        return staying, tuple(w.worker_id for w in moe if w.state is WorkerState.DRAINING)
    return moe, ()


def _without_drained(
    attention: tuple[Lease, ...],
) -> tuple[tuple[Lease, ...], tuple[str, ...]]:
    """An attention worker that drains leaves when it holds nothing and another stays."""
    staying = tuple(w for w in attention if not (w.state is WorkerState.DRAINING and w.drained))
    if any(w.state is not WorkerState.DRAINING for w in staying):
        return staying, tuple(w.worker_id for w in attention if w not in staying)
    return attention, ()


def _capacity(moe: Sequence[Lease]) -> int:
    return sum(min(w.slots, w.num_experts) for w in moe)


def _missing(
    attention: Sequence[Lease], moe: Sequence[Lease], leases: Sequence[Lease], *, first: bool, rules: Rules
) -> str:
    """What a cohort still needs; empty when nothing."""
    need_attention = rules.min_attention if first else 1
    need_moe = rules.min_experts if first else 1
    needs = []
    if len(attention) < need_attention:
        doing = _starting(leases, Role.ATTENTION)
        needs.append(f"attention workers: {len(attention)} of {need_attention} ready{doing}")
    if len(moe) < need_moe:
        needs.append(f"MoE workers: {len(moe)} of {need_moe} ready{_starting(leases, Role.MOE)}")
    if needs:
        return "waiting for more " + "; ".join(needs)
    experts, capacity = moe[0].num_experts, _capacity(moe)
    if capacity < experts:
        slots = ", ".join(f"{w.worker_id} {w.slots}" for w in moe)
        return (
            f"waiting for more MoE workers: {capacity} expert slots per layer ({slots}) cannot hold "
            f"{experts} experts; start more MoE workers or give them more --slots"
        )
    return ""


def _starting(leases: Sequence[Lease], role: Role) -> str:
    """What those that are not ready yet say they do."""
    texts = [
        f"{w.worker_id} {w.state}{f' ({w.detail})' if w.detail else ''}"
        for w in leases
        if w.role is role and w.state is not WorkerState.READY
    ]
    return f" [{', '.join(texts)}]" if texts else ""


def to_member(lease: Lease) -> CohortMember:
    """The cohort record's row for a worker."""
    return CohortMember(
        worker_id=lease.worker_id,
        member=lease.member,
        grpc_address=lease.grpc_address,
        transport_address=lease.transport_address,
        node=lease.node,
    )


def _same(previous: CohortRecord, attention: Sequence[Lease], moe: Sequence[Lease], rules: Rules) -> bool:
    return (
        previous.attention == tuple(map(to_member, attention))
        and previous.moe == tuple(map(to_member, moe))
        and previous.gating == rules.gating
        and previous.scheduling == rules.scheduling
        and previous.exchange == rules.exchange
        and previous.model == attention[0].model
    )


def _change(
    previous: CohortRecord | None,
    attention: Sequence[Lease],
    moe: Sequence[Lease],
    leaving: Sequence[str],
    rules: Rules,
) -> str:
    """Why a new epoch, for the log."""
    if previous is None:
        return "first cohort"
    old = {(m.worker_id, m.member) for m in _members(previous)}
    joined = sorted(
        (w.worker_id for w in (*attention, *moe) if (w.worker_id, w.member) not in old), key=_natural
    )
    left = _lost(previous, (*attention, *moe), leaving)
    parts = [
        *([f"{_join(joined)} joined"] if joined else []),
        *([f"{_join(left)} gone"] if left else []),
        *([f"{_join(leaving)} drained"] if leaving else []),
    ]
    if previous.gating != rules.gating:
        parts.append(f"gating is now {rules.gating}")
    if previous.scheduling != rules.scheduling:
        parts.append(f"scheduling is now {rules.scheduling}")
    if previous.exchange != rules.exchange:
        parts.append(f"exchange is now {rules.exchange}")
    return ", ".join(parts) or "addresses or model changed"


def _lost(previous: CohortRecord | None, staying: Sequence[Lease], leaving: Sequence[str]) -> tuple[str, ...]:
    here = {(w.worker_id, w.member) for w in staying}
    gone = (
        (m.worker_id for m in _members(previous) if (m.worker_id, m.member) not in here) if previous else ()
    )
    return tuple(sorted((name for name in gone if name not in leaving), key=_natural))


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


class Settler:
    """Lets a decision through once it has been the same for ``settle_s`` seconds."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._what: object = None
        self._since = 0.0

    def remaining(self, what: object, now: float, at_most: float = float("inf")) -> float:
        """Seconds that ``what`` still has to stand; 0 when it may go through. ``now`` is monotonic.

        ``at_most``: of the settle time, this is enough.
        """
        if what != self._what:
            self._what, self._since = what, now
        return max(0.0, self._since + min(self._settle_s, at_most) - now)
