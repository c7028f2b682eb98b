"""Moving from one placement to another: the fewest loads, and only when it pays."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from janus_kernels.replay import ActiveSets
from janus_placement import Budget, LayerRouting, Pool, Prices, judge, place, plan_change, stages, to_hosted
from placement_cases import random_pool, routing, skewed_samples

PRICES = Prices(seconds_per_expert=1e-4, steps_per_second=20, load_seconds=0.01)


@pytest.mark.parametrize("seed", range(40))
def test_the_fewest_loads(seed: int) -> None:
    """Against every permutation of equal instances."""
    rng = np.random.default_rng(seed)
    nodes = (0, 0, 1, 1)[: int(rng.integers(1, 5))]
    pool = Pool(num_experts=6, slots=(6,) * len(nodes), nodes=nodes)
    known = routing(6, seed=seed)
    sets = known.draw([2], 8, seed)
    current = [rng.permutation(6)[: rng.integers(0, 7)].tolist() for _ in nodes]
    target = place(pool, known, sets, ["coactivation", "round-robin"][seed % 2]).placement
    change = plan_change(current, target, pool)
    pool.check(change.target)
    have = to_hosted(current, 6)
    best = 99
    for order in itertools.permutations(range(len(nodes))):
        if all(nodes[a] == nodes[b] for a, b in enumerate(order)):
            best = min(best, int((to_hosted([target[i] for i in order], 6) & ~have).sum()))
    assert len(change.loads) == best
    after = have.copy()
    for g, e in change.loads:
        assert not after[e, g]
        after[e, g] = True
    for g, e in change.drops:
        assert after[e, g]
        after[e, g] = False
    np.testing.assert_array_equal(after, to_hosted(change.target, 6))
    assert change.bytes(10) == 10 * len(change.loads)


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_keeps_its_slot(seed: int) -> None:
    pool = random_pool(seed)
    known = routing(pool.num_experts, 1, seed=seed)
    sets = known.draw([4], 8)
    current = place(pool, known, sets, "round-robin").placement
    change = plan_change(current, place(pool, known, sets, "coactivation").placement, pool)
    for g, row in enumerate(current):
        gone = {e for h, e in change.drops if h == g}
        if not gone:
            assert change.target[g][: len(row)] == row
        new = change.target[g]
        for slot, expert in enumerate(row):
            if expert not in gone and len(new) >= len(row):
                assert new[slot] == expert


def shifted(seed: int) -> tuple[LayerRouting, LayerRouting]:
    return routing(32, 2, 2000, seed), routing(32, 2, 2000, seed + 1000)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_moves_when_nothing_changed(seed: int) -> None:
    pool = Pool(num_experts=32, slots=(9,) * 4)
    samples = skewed_samples(32, 2, 4000, seed)
    first, second = (LayerRouting(part, 32) for part in (samples[:2000], samples[2000:]))
    current = place(pool, first, first.draw([16], 256, 1)).placement
    found = place(pool, second, second.draw([16], 256, 2), current=current, price=0.002)
    verdict = judge(current, plan_change(current, found.placement, pool), second.draw([16], 256, 3), PRICES)
    assert not verdict.go, verdict


@pytest.mark.parametrize("seed", range(5))
def test_a_new_topic_is_worth_a_move(seed: int) -> None:
    pool = Pool(num_experts=32, slots=(9,) * 4)
    before, after = shifted(seed)
    current = place(pool, before, before.draw([16], 256, 1)).placement
    found = place(pool, after, after.draw([16], 256, 2), current=current, price=0.002)
    change = plan_change(current, found.placement, pool)
    generous = Prices(seconds_per_expert=1e-3, steps_per_second=50, load_seconds=0.01)
    verdict = judge(current, change, after.draw([16], 256, 3), generous)
    assert verdict.go, verdict
    assert verdict.saving_s > verdict.cost_s > 0
    dear = Prices(seconds_per_expert=1e-3, steps_per_second=50, load_seconds=1e3)
    refused = judge(current, change, after.draw([16], 256, 3), dear)
    assert not refused.go
    assert "costs" in refused.reason


def test_what_saves_little_is_not_moved_for() -> None:
    """One batch of ten gains one expert of five: 2% of a_max, however long the horizon."""
    pool = Pool(num_experts=10, slots=(6, 6))
    now = [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 4]]
    better = [[0, 1, 2, 3, 5, 4], [6, 7, 8, 9, 4, 0]]
    mask = np.ones((4000, 10), bool)
    mask[::10] = [True] * 4 + [False] * 2 + [False] * 4  # 0..3 alone: 4 now, 3 with another host of 0
    sets = ActiveSets.from_mask(mask)
    change = plan_change(now, better, pool)
    found = [
        judge(
            now, change, sets, Prices(seconds_per_expert=1, steps_per_second=1, load_seconds=0, least=least)
        )
        for least in (0.0, 0.01, 0.05)
    ]
    assert [v.go for v in found] == [True, True, False]
    assert found[2].gain == pytest.approx(0.1) and "less than 5% of it" in found[2].reason


def test_a_price_on_loads_keeps_them_few() -> None:
    pool = Pool(num_experts=32, slots=(9,) * 4)
    before, after = shifted(1)
    current = place(pool, before, before.draw([16], 128, 1)).placement
    moved = []
    for price in (0.0, 0.01, 1e6):
        found = place(pool, after, after.draw([16], 128, 2), current=current, price=price, budget=Budget())
        moved.append(len(plan_change(current, found.placement, pool).loads))
    assert moved[0] >= moved[1] >= moved[2] == 0


def test_the_same_placement_is_no_change() -> None:
    pool = Pool(num_experts=4, slots=(3, 3))
    change = plan_change([[1, 0], [2, 3]], [[2, 3], [0, 1]], pool)
    assert change.target == ((1, 0), (2, 3))
    assert not change.loads
    assert not change.drops
    verdict = judge([[1, 0], [2, 3]], change, routing(4).draw([2], 4), PRICES)
    assert not verdict.go
    assert verdict.reason == "nothing would move"


@pytest.mark.parametrize("seed", range(40))
def test_stages_keep_within_the_room(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = int(rng.integers(1, 5))
    room = rng.integers(0, 7, instances).tolist()
    loads = {
        int(layer): [(int(g), e) for e, g in enumerate(rng.integers(0, instances, rng.integers(0, 9)))]
        for layer in rng.permutation(12)
    }
    made, never = stages(loads, room)
    staged = [layer for stage in made for layer in stage]

    def fits(layers: list[int]) -> bool:
        counts = Counter(g for layer in layers for g, _ in loads[layer])
        return all(not room[g] or n <= room[g] for g, n in counts.items())

    assert sorted([*staged, *never]) == sorted(loads), "every layer once"
    assert staged == [layer for layer in loads if layer not in never], "in order"
    assert all(stage and fits(stage) for stage in made) and not any(fits([layer]) for layer in never)
    assert not any(fits([*a, b[0]]) for a, b in itertools.pairwise(made)), "no stage ends early"
