"""Replica placement of one MoE layer; pure functions.

Terms: E logical experts, n_e instances (MoE ranks), C_g slots of instance g. A placement is a tuple over
instances of the experts hosted, in slot order.
"""

from __future__ import annotations

from collections.abc import Sequence

Placement = tuple[tuple[int, ...], ...]


def round_robin(num_experts: int, capacities: Sequence[int], *, start: int = 0) -> Placement:
    """Every expert once, dealt to the instances in turn; then replicas, dealt the same way, in spare slots.

    ``capacities[g]`` is C_g; dealing begins at instance ``start`` (callers vary it by layer, so that the
    instances with one expert more are not the same ones in each). An instance never hosts an expert twice;
    slots that could only hold a second copy stay empty.

    Raises ValueError when the slots cannot hold every expert once.
    """
    if sum(min(c, num_experts) for c in capacities) < num_experts:
        raise ValueError(f"{sum(capacities)} slots cannot hold {num_experts} experts")
    count = len(capacities)
    hosted: list[list[int]] = [[] for _ in capacities]
    turn = start % count
    # Replicas are dealt until a whole round of experts finds no slot.
    placed_in_round = True
    first_round = True
    while placed_in_round:
        placed_in_round = False
        for expert in range(num_experts):
            chosen = _next_free(expert, hosted, capacities, turn)
            if chosen is None:
                continue  # in the first round there is always a slot: the sum was checked
            hosted[chosen].append(expert)
            turn = (chosen + 1) % count
            placed_in_round = True
        if first_round:
            first_round = False
            turn = (turn + 1) % count  # so that an even deal does not offer each expert to its own host again
    return tuple(tuple(experts) for experts in hosted)


def _next_free(
    expert: int, hosted: Sequence[Sequence[int]], capacities: Sequence[int], turn: int
) -> int | None:
    for step in range(len(capacities)):
        instance = (turn + step) % len(capacities)
        if len(hosted[instance]) < capacities[instance] and expert not in hosted[instance]:
            return instance
    return None


def layers_round_robin(num_experts: int, capacities: Sequence[int], layers: int) -> tuple[Placement, ...]:
    """One placement per MoE layer; the first instance moves on by one from layer to layer."""
    return tuple(round_robin(num_experts, capacities, start=layer) for layer in range(layers))
