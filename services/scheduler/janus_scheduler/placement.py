"""Layouts for a cohort: the first one dealt, later ones as near to the last as the workers allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from janus_runtime.records import LayoutRecord, Lease

if TYPE_CHECKING:
    from janus_placement import Pool

Placement = tuple[tuple[int, ...], ...]


def layers_round_robin(num_experts: int, capacities: Sequence[int], layers: int) -> tuple[Placement, ...]:
    """One placement per MoE layer; the first instance moves on by one from layer to layer.

    Raises ValueError when the slots cannot hold every expert once.
    """
    # Here and below: numpy comes in with the first layout, not with the start.
    from janus_placement import Pool
    from janus_placement.baselines import round_robin

    pool = Pool(num_experts=num_experts, slots=tuple(capacities))
    return tuple(round_robin(pool, start=layer) for layer in range(layers))


def build_layout(
    moe: Sequence[Lease],
    version: int,
    previous: LayoutRecord | None,
    ranks: Sequence[str] = (),
    min_replicas: int = 1,
) -> LayoutRecord:
    """The layout for these MoE ranks; ``previous`` itself when nothing need change.

    Args:
        version: of a new layout. Versions are the epochs that brought them: unique, and growing.
        ranks: worker ids of ``previous``'s ranks. Workers among them keep what they host as far as their slots
            allow; new ones take replicas.
        min_replicas: of each expert, as far as the slots and workers allow.
    """
    experts, layers = moe[0].num_experts, moe[0].moe_layers
    capacities = [lease.slots for lease in moe]
    if previous is None or previous.num_experts != experts or len(previous.placement) != layers:
        placement = layers_round_robin(experts, capacities, layers)
    else:
        placement = _repaired(moe, previous, ranks, min_replicas)
    slots = max(capacities)
    if previous is not None and (previous.placement, previous.slots) == (placement, slots):
        return previous
    return LayoutRecord(version=version, num_experts=experts, slots=slots, placement=placement)


def _repaired(
    moe: Sequence[Lease], previous: LayoutRecord, ranks: Sequence[str], min_replicas: int
) -> tuple[Placement, ...]:
    from janus_placement import repair

    pool = pool_of(moe, min_replicas)
    place = {worker_id: rank for rank, worker_id in enumerate(ranks)}
    old = [place.get(lease.worker_id) for lease in moe]
    return tuple(
        repair(pool, [() if rank is None else layer[rank] for rank in old]) for layer in previous.placement
    )


def pool_of(moe: Sequence[Lease], min_replicas: int) -> Pool:
    """The pool that these workers are; ``min_replicas`` is lowered to what they can hold."""
    from janus_placement import Pool

    experts = moe[0].num_experts
    slots = tuple(lease.slots for lease in moe)
    room = sum(min(s, experts) for s in slots) // experts
    names = sorted({lease.node for lease in moe})
    return Pool(
        num_experts=experts, slots=slots, nodes=tuple(names.index(lease.node) for lease in moe),
        min_replicas=max(1, min(min_replicas, len(moe), room)),
    )  # fmt: skip
