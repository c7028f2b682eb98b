"""Ours: local search on replayed routing, through the real schedule.

A batch whose a_max is above its bound has a witness: a set of instances that the experts of its fullest one are
confined to. Only a replica of such an expert on an instance outside the set can relieve it. The replay counts,
over all batches, which (expert, instance) pairs would (:func:`janus_kernels.replay.replay`, ``pressure``); the
search tries the most wanted pairs, against the replicas least missed there, and keeps what lowers the mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from janus_kernels.replay import ActiveSets, replay

from janus_placement.pool import Hosted, Pool

_DETOUR = 6
"""Loads that a walk may be ahead of its gain."""
_LOST = 24
"""Placements replayed without a gain before the walk begins again from the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop. The same placements and budget give the same result unless ``seconds`` cuts it short."""

    evaluations: int = 400
    """Placements replayed, at most."""
    patience: int = 120
    """Placements replayed since the last improvement, at most."""
    seconds: float = 60.0
    """Wall time, at most."""


@dataclass(slots=True)
class Found:
    """Result of :func:`improve`."""

    hosted: Hosted
    cost: float
    """Mean a_max over the batches, plus the price of replicas loaded."""
    evaluations: int


@dataclass(frozen=True, slots=True)
class _Move:
    """``expert`` gets a replica on ``to``; the one on ``leaves`` goes (-1: none). ``victim`` (-1: none, a slot is
    free) goes from ``to``, to ``leaves`` if ``swaps``."""

    expert: int
    to: int
    leaves: int
    victim: int
    swaps: bool

    def apply(self, hosted: Hosted) -> None:
        hosted[self.expert, self.to] = True
        if self.leaves >= 0:
            hosted[self.expert, self.leaves] = False
        if self.victim >= 0:
            hosted[self.victim, self.to] = False
            if self.swaps:
                hosted[self.victim, self.leaves] = True

    def back(self) -> _Move:
        """The move that undoes a swap; of other moves, the move itself."""
        return _Move(self.victim, self.leaves, self.to, self.expert, True) if self.swaps else self

    def allowed(self, hosted: Hosted, pool: Pool) -> bool:
        """Whether both experts' spread over nodes survives, as far as the least replicas need it."""
        if pool.min_replicas == 1 or not any(pool.nodes):
            return True  # _moves takes nobody's last replica, and swaps keep their number
        nodes = np.array(pool.nodes)
        after = hosted.copy()
        self.apply(after)
        for expert in (self.expert, self.victim):
            spread, was = (len(set(nodes[rows[expert]].tolist())) for rows in (after, hosted))
            if expert >= 0 and spread < min(pool.min_replicas, was):
                return False
        return True


def improve(
    pool: Pool,
    start: Hosted,
    sets: ActiveSets,
    *,
    policy: str = "optimal",
    budget: Budget | None = None,
    current: Hosted | None = None,
    price: float = 0.0,
    seed: int = 0,
) -> Found:
    """Lower the mean a_max of ``start`` over ``sets``.

    Args:
        policy: schedule to replay with, ``optimal`` or ``aebs``.
        current: what is loaded now, bool [E, n_e]; each replica that is not there costs ``price`` (in a_max).
        seed: of the order in which equals are tried.
    """
    budget = budget or Budget()
    rng = np.random.default_rng(seed)
    until = time.monotonic() + budget.seconds
    active = sets.mask()
    popularity = active.mean(axis=0) if len(sets) else np.zeros(pool.num_experts)
    bound = float(lower_bounds(sets, pool.num_instances).mean()) if len(sets) else 0.0

    def evaluate(hosted: Hosted) -> tuple[float, np.ndarray]:
        pressure = np.zeros(hosted.shape, np.int32)
        slot_of = np.where(hosted, 0, -1).astype(np.int32)
        peaks = replay(sets, slot_of, "optimal", pressure=pressure)
        if policy != "optimal":
            peaks = replay(sets, slot_of, policy)
        loaded = 0 if current is None else int((hosted & ~current).sum())
        return float(peaks.mean()) + price * loaded if len(sets) else price * loaded, pressure

    hosted = start.copy()
    cost, pressure = evaluate(hosted)
    best, best_cost, best_pressure = hosted.copy(), cost, pressure
    evaluations, last_gain, walked = 1, 1, 0
    tried: set[_Move] = set()
    moves = _moves(pool, hosted, pressure, popularity, rng)
    while evaluations < budget.evaluations and evaluations - last_gain < budget.patience:
        if best_cost <= bound + 1e-9 or time.monotonic() >= until:
            break
        move = next((m for m in moves if m not in tried and m.allowed(hosted, pool)), None)
        if move is None and cost == best_cost and not walked:
            break
        if move is None or walked > _LOST:
            # Walked into a dead end: again from the best, in another order.
            hosted, cost, pressure, tried, walked = best.copy(), best_cost, best_pressure, set(), 0
            moves = _moves(pool, hosted, pressure, popularity, rng)
            continue
        candidate = hosted.copy()
        move.apply(candidate)
        new_cost, new_pressure = evaluate(candidate)
        evaluations += 1
        tried.add(move)
        # Plateaus are walked too, paid loads and all (two instances at the peak take two moves before the mean
        # falls), but not far, no step twice since the last gain, nor back.
        walked += 1
        if new_cost > cost + 2 * price + 1e-12 or new_cost > best_cost + _DETOUR * price + 1e-12:
            continue
        tried = {move.back()} | (set() if new_cost < cost else tried)
        hosted, cost, pressure = candidate, new_cost, new_pressure
        if new_cost < best_cost - 1e-12:
            best, best_cost, best_pressure = hosted.copy(), cost, pressure
            last_gain, walked = evaluations, 0
        moves = _moves(pool, hosted, pressure, popularity, rng)
    return Found(best, best_cost, evaluations)


def lower_bounds(sets: ActiveSets, num_instances: int) -> np.ndarray:
    """int64 [N]: no schedule on any placement has a smaller a_max than distinct experts over instances."""
    return -(-sets.counts // num_instances)


def _moves(
    pool: Pool, hosted: Hosted, pressure: np.ndarray, popularity: np.ndarray, rng: np.random.Generator
) -> Iterator[_Move]:
    """Moves from a placement, the most promising first."""
    wanted = np.where(hosted, 0, pressure)
    wanted_most = wanted.max(axis=1)
    replicas = hosted.sum(axis=1)
    # A replica is little missed when its expert is rarely active or has other hosts.
    missed = popularity / np.maximum(replicas, 1)
    full = hosted.sum(axis=0) >= np.array(pool.capacities)
    pairs = np.argsort(-(wanted + rng.random(wanted.shape) * 0.5), axis=None)[: 4 * len(hosted)]
    pairs = pairs[wanted.ravel()[pairs] > 0]
    victims: dict[int, tuple[list[int], list[int]]] = {}

    def ways_of(expert: int, to: int) -> list[_Move]:
        if not full[to]:
            return [_Move(expert, to, -1, -1, False)]
        if to not in victims:
            there = np.flatnonzero(hosted[:, to])
            idle = there[np.argsort(missed[there], kind="stable")][:4].tolist()
            eager = there[np.lexsort((popularity[there], -wanted_most[there]))][:6].tolist()
            victims[to] = idle, list(dict.fromkeys(eager + idle))
        idle, swappable = victims[to]
        sources = np.flatnonzero(hosted[expert]).tolist()
        replace = [_Move(expert, to, -1, f, False) for f in idle if replicas[f] > pool.min_replicas]
        swap = [
            _Move(expert, to, g, f, True)
            for f in swappable
            for g in [g for g in sources if not hosted[f, g]][:2]
        ]
        return replace + swap

    ways: list[list[_Move]] = []
    # Every pair's best way first, then every pair's second best.
    for turn in range(1 + 4 + 2 * 10):
        nothing = True
        for i, flat in enumerate(pairs.tolist()):
            if turn == 0:
                ways.append(ways_of(*divmod(flat, hosted.shape[1])))
            if turn < len(ways[i]):
                nothing = False
                yield ways[i][turn]
        if nothing:
            return
