"""Placement strategies by name, each saying what it achieves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from janus_kernels.replay import ActiveSets, replay

from janus_placement import baselines
from janus_placement.pool import Hosted, Placement, PlacementError, Pool, from_hosted, to_hosted
from janus_placement.routing import LayerRouting
from janus_placement.search import Budget, improve, lower_bounds

STRATEGIES = ("search", "coactivation", "load-balanced", "round-robin")
"""Names, the default first."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement of one layer and what it is worth on the batches it was made for."""

    placement: Placement
    expected_a_max: float
    """Mean a_max over the batches."""
    lower_bound: float
    """Mean of what no schedule on any placement can go below."""
    strategy: str


def place(
    pool: Pool,
    routing: LayerRouting,
    sets: ActiveSets,
    strategy: str = "search",
    *,
    policy: str = "optimal",
    budget: Budget | None = None,
    current: Sequence[Sequence[int]] | None = None,
    price: float = 0.0,
    incremental: bool = False,
    start: int = 0,
    seed: int = 0,
) -> Placed:
    """Place the replicas of one layer.

    Args:
        sets: distinct experts of batches to replay (:meth:`LayerRouting.draw`): of the sizes that are served.
        strategy: one of STRATEGIES. ``search`` begins from the best of the others and of ``current``.
        policy: schedule to replay with.
        current: what is loaded now. ``search`` charges ``price``, in a_max, for each replica that is not there.
        incremental: ``search`` begins from ``current`` alone, if that keeps to the pool's rules: many times quicker.
        start: of ``round-robin``; vary it by layer.

    Raises PlacementError.
    """
    if routing.num_experts != pool.num_experts:
        raise PlacementError(f"routing of {routing.num_experts} experts; the pool holds {pool.num_experts}")
    made = {
        "round-robin": lambda: baselines.round_robin(pool, start=start),
        "load-balanced": lambda: baselines.load_balanced(pool, routing),
        "coactivation": lambda: baselines.coactivation(pool, routing),
    }
    if strategy in made:
        return _placed(made[strategy](), sets, policy, strategy)
    if strategy != "search":
        raise PlacementError(f"strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    now = None if current is None else to_hosted(current, pool.num_experts)
    starts = [now] if now is not None and _keeps(pool, current) else []
    if not starts or not incremental:
        starts += [to_hosted(make(), pool.num_experts) for make in made.values()]
    begin = min(starts, key=lambda hosted: _cost(hosted, sets, policy, now, price))
    found = improve(pool, begin, sets, policy=policy, budget=budget, current=now, price=price, seed=seed)
    return _placed(from_hosted(found.hosted, like=current), sets, policy, strategy)


def _keeps(pool: Pool, placement: Sequence[Sequence[int]] | None) -> bool:
    try:
        pool.check(placement or ())
    except PlacementError:
        return False
    return True


def _cost(hosted: Hosted, sets: ActiveSets, policy: str, current: Hosted | None, price: float) -> float:
    loaded = 0 if current is None else int((hosted & ~current).sum())
    return expected_a_max(hosted, sets, policy) + price * loaded


def expected_a_max(hosted: Hosted, sets: ActiveSets, policy: str = "optimal") -> float:
    """Mean a_max of the batches; 0 without any."""
    if not len(sets):
        return 0.0
    return float(replay(sets, np.where(hosted, 0, -1).astype(np.int32), policy).mean())


def _placed(placement: Placement, sets: ActiveSets, policy: str, strategy: str) -> Placed:
    hosted = to_hosted(placement, sets.num_experts)
    bound = float(lower_bounds(sets, hosted.shape[1]).mean()) if len(sets) else 0.0
    return Placed(placement, expected_a_max(hosted, sets, policy), bound, strategy)
