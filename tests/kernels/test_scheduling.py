"""Activation scheduling: the least possible a_max, compiled equal to the reference, the same everywhere."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from janus_kernels import POLICIES, LayoutError, NoLiveHostError, ReplicaLayout, schedule
from janus_kernels.native import NATIVE
from janus_kernels.scheduling import reference_schedule

Judge = Callable[[list[int], ReplicaLayout], int]


def random_layout(draw: random.Random, experts: int, instances: int) -> ReplicaLayout:
    rows: list[list[int]] = [[] for _ in range(instances)]
    for expert in range(experts):
        count = draw.choice([1, 1, 1, 2, 2, 3, instances])
        for host in draw.sample(range(instances), min(count, instances)):
            rows[host].append(expert)
    for row in rows:
        draw.shuffle(row)
    return ReplicaLayout.from_placement(rows, experts, slots=max(1, *map(len, rows)) + draw.randrange(3))


def chain(length: int, crowd: int = 2) -> ReplicaLayout:
    """Expert i lives on i and i+1, instance 0 is crowded: lowering it needs a path over all others."""
    rows: list[list[int]] = [[] for _ in range(length + 1)]
    for expert in range(length):
        rows[expert].append(expert)
        rows[expert + 1].append(expert)
    rows[0] += range(length, length + crowd)
    return ReplicaLayout.from_placement(rows, length + crowd)


def two_sided_trap(pairs: int) -> ReplicaLayout:
    """Greedy fills the low ranks with experts that could live elsewhere before those that could not."""
    rows: list[list[int]] = [[] for _ in range(2 * pairs)]
    for i in range(pairs):
        for expert in (i, pairs + i):
            rows[i].append(expert)
            rows[pairs + i].append(expert)
        for expert in (2 * pairs + i, 3 * pairs + i):
            for host in {i, (i + 1) % pairs}:
                rows[host].append(expert)
    return ReplicaLayout.from_placement(rows, 4 * pairs)


def check(ids: np.ndarray, layout: ReplicaLayout, least_a_max: Judge) -> None:  # type: ignore[type-arg]
    """Every policy is valid, counts rightly and equals the reference; `optimal` is optimal."""
    active = np.unique(ids).tolist()
    best = least_a_max(active, layout)
    for policy in POLICIES:
        got = schedule(ids, layout, policy, layout_version=3, seed=5)
        instances, slots = got.replica_ids // layout.slots, got.replica_ids % layout.slots
        pairs = list(
            zip(ids.ravel().tolist(), instances.ravel().tolist(), slots.ravel().tolist(), strict=True)
        )
        assert all(layout.placement[instance][slot] == expert for expert, instance, slot in pairs)
        distinct = {(expert, instance) for expert, instance, _ in pairs}
        load = np.bincount([i for _, i in distinct], minlength=layout.num_instances)
        np.testing.assert_array_equal(got.instance_load, load)
        assert got.a_max == load.max() >= best
        slow = reference_schedule(ids, layout, policy, layout_version=3, seed=5)
        np.testing.assert_array_equal(got.replica_ids, slow.replica_ids)
        np.testing.assert_array_equal(got.instance_load, slow.instance_load)
        assert (got.a_max, got.digest) == (slow.a_max, slow.digest)
        if policy != "token-balanced":
            assert len(distinct) == len(active)
        if policy == "optimal":
            assert got.a_max == best


@pytest.mark.parametrize("seed", range(40))
def test_random_instances(seed: int, least_a_max: Judge) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        experts, instances = draw.randrange(1, 40), draw.randrange(1, 12)
        layout = random_layout(draw, experts, instances)
        topk = draw.randrange(1, min(8, experts) + 1)
        rows = [draw.sample(range(experts), topk) for _ in range(draw.randrange(1, 14))]
        check(np.array(rows, np.int32), layout, least_a_max)


@pytest.mark.parametrize("length", [1, 2, 5, 20, 60, 200])
@pytest.mark.parametrize("crowd", [1, 2, 7])
def test_long_augmenting_paths(length: int, crowd: int, least_a_max: Judge) -> None:
    check(np.arange(length + crowd, dtype=np.int32)[:, None], chain(length, crowd), least_a_max)


def test_adversarial_layouts(least_a_max: Judge) -> None:
    hot = ReplicaLayout.from_placement([list(range(30)), list(range(10)), [29, 28]], 30)
    check(np.arange(30, dtype=np.int32).reshape(1, 30), hot, least_a_max)
    for pairs in (1, 2, 7, 40):
        check(np.arange(4 * pairs, dtype=np.int32)[:, None], two_sided_trap(pairs), least_a_max)
    everywhere = ReplicaLayout.from_placement([list(range(31))] * 9, 31)
    check(np.arange(31, dtype=np.int32)[None], everywhere, least_a_max)


def test_k_is_all_experts(least_a_max: Judge) -> None:
    draw = random.Random(1)
    layout = random_layout(draw, 32, 5)
    check(np.array([draw.sample(range(32), 32) for _ in range(3)], np.int32), layout, least_a_max)


def test_the_largest_size(least_a_max: Judge) -> None:
    draw = random.Random(2)
    layout = random_layout(draw, 1024, 256)
    ids = np.array([draw.sample(range(1024), 32) for _ in range(40)], np.int32)
    got, slow = schedule(ids, layout), reference_schedule(ids, layout, "optimal")
    assert got.a_max == least_a_max(np.unique(ids).tolist(), layout)
    np.testing.assert_array_equal(got.replica_ids, slow.replica_ids)
    assert got.digest == slow.digest


def test_optimal_beats_greedy_where_the_paper_measures(least_a_max: Judge) -> None:
    """E=160, 16 instances x 27 slots, top-6: spare slots as replicas of random experts."""
    draw = random.Random(3)
    rows = [[e for e in range(160) if e % 16 == g] for g in range(16)]
    for row in rows:
        row += draw.sample([e for e in range(160) if e not in row], 17)
    layout = ReplicaLayout.from_placement(rows, 160)
    ids = np.array([draw.sample(range(160), 6) for _ in range(256)], np.int32)
    a_max = {policy: schedule(ids, layout, policy).a_max for policy in POLICIES}
    assert a_max["optimal"] == least_a_max(np.unique(ids).tolist(), layout) <= a_max["aebs"] < a_max["random"]
    assert a_max["random"] < a_max["token-balanced"]


def test_no_token_is_fine() -> None:
    layout = ReplicaLayout.from_placement([[0], [1]], 2)
    for policy in POLICIES:
        result = schedule(np.empty((0, 2), np.int32), layout, policy)
        assert (result.a_max, result.replica_ids.shape) == (0, (0, 2))
        assert result.digest == reference_schedule(np.empty((0, 2), np.int32), layout, policy).digest


def test_deterministic_and_digest_tells_differences() -> None:
    draw = random.Random(9)
    layout = random_layout(draw, 64, 8)
    ids = np.array([draw.sample(range(64), 6) for _ in range(100)], np.int32)
    first = schedule(ids, layout, layout_version=1)
    again = schedule(
        ids.copy(), ReplicaLayout.from_placement(layout.placement, 64, layout.slots), layout_version=1
    )
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.replica_ids, again.replica_ids)
    assert schedule(ids, layout, layout_version=2).digest != first.digest
    assert schedule(ids[::-1], layout, layout_version=1).digest != first.digest
    digests = set()
    for place in range(0, ids.size, 7):
        changed = ids.copy()
        changed.flat[place] = (changed.flat[place] + 1) % 64
        digests.add(schedule(changed, layout, layout_version=1).digest)
    assert len(digests) == len(range(0, ids.size, 7)) and first.digest not in digests
    seeds = [schedule(ids, layout, "random", seed=seed).replica_ids.tolist() for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_digest_is_the_same_on_every_platform() -> None:
    layout = ReplicaLayout.from_placement([[0, 1], [1, 2]], 3)
    assert schedule(np.array([[0, 1], [1, 2]]), layout, layout_version=7).digest == DIGEST


DIGEST = 0x2893AAE3BE22C472

_CHILD = """
import sys
import numpy as np
from janus_kernels import POLICIES, ReplicaLayout, schedule
assert "torch" not in sys.modules, "the scheduler's image has no torch"
layout = ReplicaLayout.from_placement([[0, 1, 4], [2, 3, 4], [1, 0]], 5)
ids = np.random.default_rng(3).integers(0, 5, (40, 3))
print([schedule(ids, layout, policy, layout_version=9, seed=4).digest for policy in POLICIES])
"""


def test_processes_agree_compiled_or_not() -> None:
    answers = set()
    for kernels, hash_seed in [("", "1"), ("", "2"), ("portable", "3"), ("torch", "4")]:
        environment = {**os.environ, "JANUS_KERNELS": kernels, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", _CHILD], env=environment, capture_output=True, text=True,
                              timeout=60, check=True)  # fmt: skip
        answers.add(done.stdout)
    assert len(answers) == 1


def test_threads_may_share_a_layout() -> None:
    draw = random.Random(4)
    layout = random_layout(draw, 200, 16)
    work = [np.array([draw.sample(range(200), 8) for _ in range(64)], np.int32) for _ in range(4)]
    expected = [schedule(ids, layout).digest for ids in work]
    wrong: list[int] = []

    def run(i: int) -> None:
        wrong.extend(i for _ in range(300) if schedule(work[i], layout).digest != expected[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_tensors_and_other_integers_are_taken() -> None:
    torch = pytest.importorskip("torch")
    layout = ReplicaLayout.from_placement([[0, 1, 4], [2, 3, 4]], num_experts=5)
    ids = [[0, 4], [1, 4]]
    expected = schedule(np.array(ids, np.int32), layout)
    for given in (ids, torch.tensor(ids), torch.tensor(ids, dtype=torch.int32), np.array(ids, np.uint8)):
        assert schedule(given, layout).digest == expected.digest
    assert schedule(np.array(ids, np.int32).T.copy().T, layout).digest == expected.digest


def test_bad_input_names_what_is_wrong() -> None:
    layout = ReplicaLayout.from_placement([[0, 1], [1]], 4)
    for policy in POLICIES:
        with pytest.raises(NoLiveHostError, match=r"\[2, 3\]"):
            schedule(np.array([[0, 3], [2, 1]]), layout, policy)
        for bad in (4, -1, 1 << 40):
            with pytest.raises(ValueError, match=r"topk_ids has values"):
                schedule(np.array([[bad]]), layout, policy)
    with pytest.raises(ValueError, match="shape"):
        schedule(np.array([1, 2]), layout)
    with pytest.raises(ValueError, match=r"k in 1..32"):
        schedule(np.zeros((1, 33), np.int32), layout)
    with pytest.raises(ValueError, match="float64"):
        schedule(np.array([[1.0]]), layout)
    with pytest.raises(ValueError, match="optimal, aebs"):
        schedule(np.array([[1]]), layout, "best")
    for placement, match in [([[0, 9]], "expert 9"), ([[0, 0]], "twice"), ([], "instances")]:
        with pytest.raises(LayoutError, match=match):
            ReplicaLayout.from_placement(placement, 4)
    with pytest.raises(LayoutError, match="slots = 1"):
        ReplicaLayout.from_placement([[0, 1]], 4, slots=1)


def test_compiled_kernels_are_what_is_tested() -> None:
    assert NATIVE is not None, "build them: pip install -e libs/kernels"
