"""A placement for a pool that has changed, near the one that was: what survives stays where it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_placement.baselines import replica_counts, swap_in
from janus_placement.pool import Placement, PlacementError, Pool, from_hosted, to_hosted
from janus_placement.routing import Float


def repair(pool: Pool, current: Sequence[Sequence[int]], load: Float | None = None) -> Placement:
    """Keep ``current`` as far as the pool allows; give each expert its least replicas; fill the spare slots.

    Args:
        current: per instance of the pool, what it hosts now; empty for one that is new.
        load: c(e), float64 [E], for the choice of replicas in spare slots; default: all alike.

    Deterministic. Raises PlacementError when ``current`` is not about this pool.
    """
    if len(current) != pool.num_instances:
        raise PlacementError(f"placement of {len(current)} instances; the pool has {pool.num_instances}")
    weights = np.ones(pool.num_experts) if load is None else load
    hosted = to_hosted(current, pool.num_experts)
    free = np.array(pool.capacities) - hosted.sum(axis=0)
    for g in np.flatnonzero(free < 0).tolist():
        # Fewer slots than before: experts with the most other replicas go first.
        while free[g] < 0:
            here = np.flatnonzero(hosted[:, g])
            gone = here[np.lexsort((weights[here], -hosted[here].sum(axis=1)))[0]]
            hosted[gone, g] = False
            free[g] += 1
    wanted = np.maximum(replica_counts(pool, weights), pool.min_replicas)
    for least in (True, False):
        while True:
            have = hosted.sum(axis=1)
            short = (pool.min_replicas if least else wanted) - have
            order = [int(e) for e in np.lexsort((-weights / np.maximum(1, have),)) if short[e] > 0]
            given = [_give(pool, expert, hosted, free, weights, must=least) for expert in order]
            if not any(given):
                break
    if not (hosted.sum(axis=1) >= pool.min_replicas).all():
        raise AssertionError("no slot for an expert, though the pool's slots suffice")
    # Slots that the counts left open still serve as standbys.
    for g in np.flatnonzero(free > 0).tolist():
        away = np.flatnonzero(~hosted[:, g])
        for e in away[np.lexsort((-weights[away], hosted[away].sum(axis=1)))][: free[g]].tolist():
            hosted[e, g] = True
            free[g] -= 1
    return from_hosted(hosted, like=current)


def _give(
    pool: Pool, expert: int, hosted: np.ndarray, free: np.ndarray, weights: Float, *, must: bool
) -> bool:
    """One more replica: on another node if there is room, where the load is least; where it must, at the cost of
    someone's spare replica or by moving others."""
    nodes = np.array(pool.nodes)
    fit = (free > 0) & ~hosted[expert]
    share = weights / np.maximum(1, hosted.sum(axis=1))
    if fit.any():
        elsewhere = fit & ~np.isin(nodes, nodes[hosted[expert]]) if any(pool.nodes) else fit
        cost = np.where(elsewhere if elsewhere.any() else fit, share @ hosted, np.inf)
        g = int(cost.argmin())
        hosted[expert, g] = True
        free[g] -= 1
        return True
    if not must:
        return False
    spare = (hosted.sum(axis=1) > pool.min_replicas)[:, None] & hosted & ~hosted[expert]
    if spare.any():
        cost = np.where(spare, share[:, None], np.inf)
        victim, g = divmod(int(cost.argmin()), hosted.shape[1])
        hosted[victim, g], hosted[expert, g] = False, True
        return True
    return swap_in(expert, hosted, free, lambda f, ones: share @ ones)
