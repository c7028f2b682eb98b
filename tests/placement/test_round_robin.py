"""The plain deal: every expert once, replicas in spare slots."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from janus_placement import Pool, baselines


def round_robin(experts: int, capacities: Sequence[int], start: int = 0) -> tuple[tuple[int, ...], ...]:
    return baselines.round_robin(Pool(num_experts=experts, slots=tuple(capacities)), start=start)


def test_no_spare_slots_is_a_plain_deal() -> None:
    assert round_robin(5, [3, 2]) == ((0, 2, 4), (1, 3))
    assert round_robin(4, [2, 2], start=1) == ((1, 3), (0, 2))


def test_one_instance_hosts_everything_once() -> None:
    assert round_robin(3, [10]) == ((0, 1, 2),)


def test_spare_slots_hold_replicas_elsewhere() -> None:
    placement = round_robin(4, [3, 3])
    assert [len(p) for p in placement] == [3, 3]
    assert sorted(e for p in placement for e in p)[:4] == [0, 0, 1, 1]


def test_too_few_slots() -> None:
    with pytest.raises(ValueError, match="7 slots cannot hold 1 replicas of 8 experts"):
        round_robin(8, [4, 3])
    with pytest.raises(ValueError, match="cannot hold"):
        round_robin(8, [100 - 100, 7])


def test_random_shapes_are_sound() -> None:
    rng = random.Random(3)
    for _ in range(500):
        experts = rng.randrange(1, 40)
        capacities = [rng.randrange(0, 24) for _ in range(rng.randrange(1, 9))]
        if sum(min(c, experts) for c in capacities) < experts:
            continue
        start = rng.randrange(9)
        placement = round_robin(experts, capacities, start=start)
        assert placement == round_robin(experts, capacities, start=start)
        assert len(placement) == len(capacities)
        copies = [0] * experts
        for hosted, capacity in zip(placement, capacities, strict=True):
            assert len(hosted) <= capacity and len(set(hosted)) == len(hosted)
            for expert in hosted:
                copies[expert] += 1
        assert min(copies) >= 1
        # Every slot that could hold another distinct expert does.
        assert [len(p) for p in placement] == [min(c, experts) for c in capacities]


def test_equal_instances_share_evenly() -> None:
    for experts, instances, slots in [(8, 3, 4), (64, 4, 20), (160, 6, 27), (128, 16, 9)]:
        placement = round_robin(experts, [slots] * instances)
        copies = [sum(e in p for p in placement) for e in range(experts)]
        assert max(copies) - min(copies) <= 1, (experts, instances, slots)
