"""Placements that the literature uses: round-robin, by load alone (as EPLB), and by co-activation (Janus' paper).

All are deterministic; ties go to the lowest expert id, then the lowest instance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from janus_placement.pool import Hosted, Placement, Pool, from_hosted
from janus_placement.routing import Float, LayerRouting

Score = Callable[[int, Float], Float]
"""(expert, hosted so far as 0 and 1, float64 [E, n_e]) -> cost of a replica on each instance; the least is taken."""


def round_robin(pool: Pool, *, start: int = 0) -> Placement:
    """Every expert once, dealt to the instances in turn from ``start``; then replicas, likewise, in spare slots.

    Callers vary ``start`` by layer, so that the instances with one expert more are not the same ones in each.
    """
    hosted = np.zeros((pool.num_experts, pool.num_instances), bool)
    order: list[list[int]] = [[] for _ in pool.slots]
    free = list(pool.capacities)
    turns = 2 * list(range(pool.num_instances))
    turn = start % pool.num_instances
    round_, placed = 0, True
    while placed:
        placed = False
        for expert in range(pool.num_experts):
            fit = [g for g in turns[turn : turn + pool.num_instances] if free[g] and not hosted[expert, g]]
            if not fit:
                continue
            on_node = _on_node(hosted, expert, pool)
            g = next((g for g in fit if not on_node[g]), fit[0])
            hosted[expert, g] = True
            order[g].append(expert)
            free[g] -= 1
            turn = (g + 1) % pool.num_instances
            placed = True
        round_ += 1
        if round_ == 1:
            turn = (turn + 1) % pool.num_instances  # else an even deal offers each expert its own host again
    short = np.flatnonzero(hosted.sum(axis=1) < pool.min_replicas)
    if len(short):
        return deal(pool, _even_counts(pool), lambda expert, hosted: hosted.sum(axis=0))
    return tuple(tuple(row) for row in order)


def load_balanced(pool: Pool, routing: LayerRouting) -> Placement:
    """As EPLB: each replica, the heaviest first, to the instance that carries least load so far."""
    counts = replica_counts(pool, routing.counts)
    share = routing.counts / counts
    return deal(pool, counts, lambda expert, hosted: share @ hosted, weight=share)


def coactivation(pool: Pool, routing: LayerRouting) -> Placement:
    """Paper, Algorithm 3: each replica, the heaviest first, to the instance whose experts have the least
    co-activation with it; where none is feasible, the cheapest bounded swap."""
    counts = replica_counts(pool, routing.counts)
    share = routing.counts / counts
    both = routing.coactivation
    return deal(pool, counts, lambda expert, hosted: both[expert] @ hosted, weight=share)


def replica_counts(pool: Pool, load: Float) -> np.ndarray:
    """R(e), int64 [E]: the least for every expert; each further slot to the expert with the largest c(e) / R(e)
    (paper, Appendix B), at most one replica an instance."""
    counts = np.full(pool.num_experts, pool.min_replicas, np.int64)
    spare = sum(pool.capacities) - int(counts.sum())
    heap = [
        (-float(load[e]) / counts[e], e) for e in range(pool.num_experts) if counts[e] < pool.num_instances
    ]
    heapq.heapify(heap)
    while spare and heap:
        _, expert = heapq.heappop(heap)
        counts[expert] += 1
        spare -= 1
        if counts[expert] < pool.num_instances:
            heapq.heappush(heap, (-float(load[expert]) / counts[expert], expert))
    return counts


def _even_counts(pool: Pool) -> np.ndarray:
    return replica_counts(pool, np.ones(pool.num_experts))


def deal(pool: Pool, counts: np.ndarray, score: Score, weight: Float | None = None) -> Placement:
    """Place ``counts[e]`` replicas of each expert, those of the largest ``weight`` first, each where ``score`` is
    least among instances with a free slot that do not host the expert, nodes without it before others.

    A replica that fits nowhere takes the place of one that can move elsewhere (the cheapest such swap). Replicas
    beyond the pool's least that fit nowhere even so are left out.
    """
    hosted = np.zeros((pool.num_experts, pool.num_instances), bool)
    free = np.array(pool.capacities)
    weights = np.ones(pool.num_experts) if weight is None else weight
    # Every expert's least first: what must be placed never competes with what may be.
    order = sorted(
        (
            (rank >= pool.min_replicas, -weights[e], e)
            for e in range(pool.num_experts)
            for rank in range(counts[e])
        ),
    )
    ones, nodes = np.zeros(hosted.shape), any(pool.nodes)
    for extra, _, expert in order:
        fit = (free > 0) & ~hosted[expert]
        if fit.any():
            if nodes:
                elsewhere = fit & ~_on_node(hosted, expert, pool)
                fit = elsewhere if elsewhere.any() else fit
            cost = np.where(fit, score(expert, ones), np.inf)
            g = int(cost.argmin())
            hosted[expert, g], ones[expert, g] = True, 1
            free[g] -= 1
        elif swap_in(expert, hosted, free, score):
            ones = hosted.astype(np.float64)
        elif not extra:
            raise AssertionError(f"no slot for expert {expert}, though the pool's slots suffice")
    return from_hosted(hosted)


def _on_node(hosted: Hosted, expert: int, pool: Pool) -> np.ndarray:
    """bool [n_e]: whether the instance's node hosts the expert already."""
    if not any(pool.nodes):
        return hosted[expert]
    nodes = np.array(pool.nodes)
    return np.isin(nodes, nodes[hosted[expert]])


def swap_in(expert: int, hosted: Hosted, free: np.ndarray, score: Score) -> bool:
    """Move some f from g to h, which has a free slot, and put ``expert`` on g."""
    best: tuple[float, int, int, int] | None = None
    ones = hosted.astype(np.float64)
    put = score(expert, ones)
    costs = {f: score(f, ones) for f in np.flatnonzero(hosted[:, ~hosted[expert]].any(axis=1)).tolist()}
    for h in np.flatnonzero(free > 0).tolist():
        for g in np.flatnonzero(~hosted[expert]).tolist():
            for f in np.flatnonzero(hosted[:, g] & ~hosted[:, h]).tolist():
                found = (float(costs[f][h] + put[g]), f, g, h)
                best = found if best is None or found < best else best
    if best is None:
        return _augment(expert, hosted, free)
    _, f, g, h = best
    hosted[f, g], hosted[f, h], hosted[expert, g] = False, True, True
    free[h] -= 1
    return True


def _augment(expert: int, hosted: Hosted, free: np.ndarray) -> bool:
    """Longer chains of moves, found breadth-first: they exist whenever any placement does."""
    came: dict[
        int, tuple[int, int]
    ] = {}  # instance -> (expert that moves there, from where; -1: from nowhere)
    queue = np.flatnonzero(~hosted[expert]).tolist()
    came.update((g, (expert, -1)) for g in queue)
    while queue:
        g = queue.pop(0)
        if free[g] > 0:
            free[g] -= 1
            while g >= 0:
                moved, source = came[g]
                hosted[moved, g] = True
                if source >= 0:
                    hosted[moved, source] = False
                g = source
            return True
        for f in np.flatnonzero(hosted[:, g]).tolist():
            for h in np.flatnonzero(~hosted[f]).tolist():
                if h not in came:
                    came[h] = (f, g)
                    queue.append(h)
    return False
