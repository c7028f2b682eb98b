"""Activation scheduling: the least possible a_max, the same everywhere, equal to the reference."""

from __future__ import annotations

import random

import numpy as np
import pytest
from janus_kernels import POLICIES, LayoutError, NoLiveHostError, ReplicaLayout, schedule
from janus_kernels.native import NATIVE
from janus_kernels.scheduling import reference_schedule


def least_a_max(active: list[int], layout: ReplicaLayout) -> int:
    """Exact: the smallest cap for which a bipartite b-matching covers every active expert (Kuhn's algorithm)."""
    cap = -(-len(active) // layout.num_instances)
    while True:
        on: list[list[int]] = [[] for _ in range(layout.num_instances)]

        def seat(expert: int, tried: set[int], cap: int = cap, on: list[list[int]] = on) -> bool:
            for host in layout.hosts[expert]:
                if host in tried:
                    continue
                tried.add(host)
                if len(on[host]) < cap:
                    on[host].append(expert)
                    return True
                for other in list(on[host]):
                    if seat(other, tried, cap, on):
                        on[host].remove(other)
                        on[host].append(expert)
                        return True
            return False

        if all(seat(expert, set()) for expert in active):
            return cap
        cap += 1


def random_layout(draw: random.Random, experts: int, instances: int) -> ReplicaLayout:
    rows: list[list[int]] = [[] for _ in range(instances)]
    for expert in range(experts):
        count = draw.choice([1, 1, 1, 2, 2, 3, instances])
        for host in draw.sample(range(instances), min(count, instances)):
            rows[host].append(expert)
    for row in rows:
        draw.shuffle(row)
    return ReplicaLayout.from_placement(rows, experts)


def chain(length: int) -> ReplicaLayout:
    """Expert i lives on i and i+1; one instance starts crowded: lowering it needs a path over all others."""
    rows: list[list[int]] = [[] for _ in range(length + 1)]
    for expert in range(length):
        rows[expert].append(expert)
        rows[expert + 1].append(expert)
    rows[0] += [length, length + 1]
    return ReplicaLayout.from_placement(rows, length + 2)


def check(ids: np.ndarray, layout: ReplicaLayout) -> None:  # type: ignore[type-arg]
    active = np.unique(ids).tolist()
    best = least_a_max(active, layout)
    for policy in POLICIES:
        got = schedule(ids, layout, policy, layout_version=3, seed=5)
        instances, slots = got.replica_ids // layout.slots, got.replica_ids % layout.slots
        for expert, instance, slot in zip(ids.ravel(), instances.ravel(), slots.ravel(), strict=True):
            assert layout.placement[instance][slot] == expert
        distinct = {(int(e), int(i)) for e, i in zip(ids.ravel(), instances.ravel(), strict=True)}
        load = np.bincount([i for _, i in distinct], minlength=layout.num_instances)
        np.testing.assert_array_equal(got.instance_load, load)
        assert got.a_max == load.max() >= best
        slow = reference_schedule(ids, layout, policy, layout_version=3, seed=5)
        assert got.a_max == slow.a_max
        if policy == "optimal":
            assert got.a_max == best
            assert len(distinct) == len(active)
        if policy == "aebs":
            np.testing.assert_array_equal(got.replica_ids, slow.replica_ids)
            assert got.digest == slow.digest


@pytest.mark.parametrize("seed", range(40))
def test_random_instances(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(25):
        experts, instances = draw.randrange(1, 40), draw.randrange(1, 9)
        layout = random_layout(draw, experts, instances)
        topk = draw.randrange(1, min(8, experts) + 1)
        rows = [draw.sample(range(experts), topk) for _ in range(draw.randrange(1, 20))]
        check(np.array(rows, np.int32), layout)


@pytest.mark.parametrize("length", [1, 2, 5, 20, 60, 200])
def test_long_augmenting_paths(length: int) -> None:
    layout = chain(length)
    check(np.arange(length + 2, dtype=np.int32)[None, :].reshape(-1, 1), layout)


def test_one_hot_instance_and_every_expert_chosen() -> None:
    layout = ReplicaLayout.from_placement([list(range(30)), list(range(10)), [29, 28]], 30)
    check(np.arange(30, dtype=np.int32).reshape(1, 30), layout)


def test_no_token_is_fine() -> None:
    layout = ReplicaLayout.from_placement([[0], [1]], 2)
    result = schedule(np.empty((0, 2), np.int32), layout)
    assert (result.a_max, result.replica_ids.shape) == (0, (0, 2))


def test_deterministic_and_digest_tells_differences() -> None:
    draw = random.Random(9)
    layout = random_layout(draw, 64, 8)
    ids = np.array([draw.sample(range(64), 6) for _ in range(100)], np.int32)
    first = schedule(ids, layout, layout_version=1)
    again = schedule(ids.copy(), ReplicaLayout.from_placement(layout.placement, 64), layout_version=1)
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.replica_ids, again.replica_ids)
    assert schedule(ids, layout, layout_version=2).digest != first.digest
    assert schedule(ids[::-1], layout, layout_version=1).digest != first.digest
    # A fixed value: the digest must not change from platform to platform or release to release unnoticed.
    tiny = ReplicaLayout.from_placement([[0, 1], [1, 2]], 3)
    assert (
        schedule(np.array([[0, 1], [1, 2]]), tiny, layout_version=7).digest
        == reference_schedule(np.array([[0, 1], [1, 2]], np.int32), tiny, "optimal", layout_version=7).digest
    )


def test_bad_input_names_what_is_wrong() -> None:
    layout = ReplicaLayout.from_placement([[0, 1], [1]], 4)
    with pytest.raises(NoLiveHostError, match=r"\[2, 3\]"):
        schedule(np.array([[0, 3], [2, 1]]), layout)
    with pytest.raises(ValueError, match=r"allowed: 0\.\.3"):
        schedule(np.array([[4]]), layout)
    with pytest.raises(ValueError, match=r"allowed: 0\.\.3"):
        schedule(np.array([[-1]]), layout)
    with pytest.raises(ValueError, match="shape"):
        schedule(np.array([1, 2]), layout)
    with pytest.raises(ValueError, match="optimal, aebs"):
        schedule(np.array([[1]]), layout, "best")
    for placement, match in [([[0, 9]], "expert 9"), ([[0, 0]], "twice"), ([], "instances")]:
        with pytest.raises(LayoutError, match=match):
            ReplicaLayout.from_placement(placement, 4)
    with pytest.raises(LayoutError, match="slots = 1"):
        ReplicaLayout.from_placement([[0, 1]], 4, slots=1)


def test_compiled_kernels_are_what_is_tested() -> None:
    assert NATIVE is not None, "build them: pip install -e libs/kernels"
