"""Layouts of a cohort: dealt at first, then kept as far as its workers allow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from janus_runtime.records import LayoutRecord, Lease
from janus_scheduler.placement import build_layout, layers_round_robin, pool_of

Ready = Callable[..., Lease]


def test_layers_start_in_turn() -> None:
    first, second, third = layers_round_robin(3, [2, 2], 3)
    assert first == third != second
    assert [len(first[0]), len(second[1])] == [2, 2]


def test_too_few_slots() -> None:
    with pytest.raises(ValueError, match="7 slots cannot hold 1 replicas of 8 experts"):
        layers_round_robin(8, [4, 3], 1)


def experts_of(layout: LayoutRecord, rank: int) -> list[set[int]]:
    return [set(layer[rank]) for layer in layout.placement]


def test_workers_that_stay_keep_their_experts(ready: Ready) -> None:
    """A loss: survivors take the orphans in; a join: the new one takes replicas; a return: likewise."""
    three = [ready(f"moe-{i}", 10 + i) for i in range(3)]
    names = [w.worker_id for w in three]
    first = build_layout(three, 1, None)
    assert build_layout(three, 2, first, names) is first
    two = [three[0], three[2]]
    second = build_layout(two, 3, first, names)
    for layer in second.placement:
        assert set().union(*layer) == set(range(8))
    assert all(len(kept & had) >= 2 for kept, had in zip(experts_of(second, 0), experts_of(first, 0)))
    third = build_layout([*two, ready("moe-9", 19)], 4, second, ["moe-0", "moe-2"])
    assert experts_of(third, 0) == experts_of(second, 0)
    assert experts_of(third, 1) == experts_of(second, 1)
    assert all(len(row) == 4 for row in experts_of(third, 2))


def test_ranks_may_change_places(ready: Ready) -> None:
    workers = [ready(f"moe-{i}", 10 + i) for i in range(3)]
    first = build_layout(workers, 1, None)
    turned = build_layout(workers[::-1], 2, first, [w.worker_id for w in workers])
    for rank in range(3):
        assert experts_of(turned, rank) == experts_of(first, 2 - rank)


def test_another_model_is_dealt_anew(ready: Ready) -> None:
    old = build_layout([ready("moe-0", 1, slots=8)], 1, None)
    new = build_layout([ready("moe-0", 1, slots=16, num_experts=16)], 2, old, ["moe-0"])
    assert new.num_experts == 16
    assert set(new.placement[0][0]) == set(range(16))


def test_replicas_on_distinct_workers_as_far_as_slots_allow(ready: Ready) -> None:
    workers = [ready(f"moe-{i}", 10 + i, slots=6, node=f"host-{i % 2}") for i in range(3)]
    pool = pool_of(workers, 3)
    assert (pool.min_replicas, pool.nodes) == (2, (0, 1, 0))
    first = build_layout(workers, 1, None)
    layout = build_layout(workers, 2, first, [w.worker_id for w in workers], 2)
    for layer in layout.placement:
        assert all(sum(expert in row for row in layer) >= 2 for expert in range(8))
