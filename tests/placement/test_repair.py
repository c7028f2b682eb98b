"""Placements after a join, a loss, fewer slots: the rules kept, what survives kept in place."""

from __future__ import annotations

import numpy as np
import pytest
from janus_placement import PlacementError, Pool, place, repair, to_hosted
from placement_cases import random_pool, routing


@pytest.mark.parametrize("seed", range(150))
def test_any_state_is_repaired(seed: int) -> None:
    pool = random_pool(seed)
    rng = np.random.default_rng(seed)
    current = [
        rng.permutation(pool.num_experts)[: rng.integers(0, pool.num_experts + 1)].tolist()
        for _ in pool.slots
    ]
    load = rng.random(pool.num_experts) if seed % 2 else None
    repaired = repair(pool, current, load)
    pool.check(repaired)
    assert repaired == repair(pool, current, load)
    assert repair(pool, repaired, load) == repaired


@pytest.mark.parametrize("seed", range(30))
def test_a_lost_instance_moves_only_what_it_must(seed: int) -> None:
    pool = Pool(num_experts=24, slots=(9,) * 4)
    known = routing(24, 2, seed=seed)
    before = place(pool, known, known.draw([8], 16, seed)).placement
    left = Pool(num_experts=24, slots=(9,) * 3)
    after = repair(left, before[:3])
    left.check(after)
    had, has = to_hosted(before[:3], 24), to_hosted(after, 24)
    orphans = int((~had.any(axis=1)).sum())
    # Slots were full: each orphan takes the place of one spare replica.
    assert (has & ~had).sum() == orphans
    assert (had & ~has).sum() == orphans


def test_a_new_instance_takes_replicas_and_moves_nobody() -> None:
    pool = Pool(num_experts=12, slots=(4, 4, 4))
    before = place(pool, routing(12), routing(12).draw([4], 8), "round-robin").placement
    wider = Pool(num_experts=12, slots=(4, 4, 4, 6))
    load = np.arange(12.0)
    after = repair(wider, [*before, ()], load)
    assert after[:3] == before
    assert sorted(after[3]) == [6, 7, 8, 9, 10, 11]


def test_another_pool_s_placement_is_refused() -> None:
    with pytest.raises(PlacementError, match="of 1 instances; the pool has 2"):
        repair(Pool(num_experts=2, slots=(2, 2)), [[0, 1]])
