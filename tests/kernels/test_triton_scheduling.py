"""Activation scheduling by Triton: equal in every number to the slow reference, whatever the layout."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from janus_kernels import NoLiveHostError, ReplicaLayout, schedule, triton
from janus_kernels.scheduling import Schedule, reference_schedule

pytestmark = pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))


@pytest.fixture(
    params=[
        "interpreter",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                                        reason="there is no CUDA device")]),
    ]
)  # fmt: skip
def device(request: pytest.FixtureRequest) -> str:
    triton.load()
    if request.param == "interpreter" and not triton.interpreted():
        pytest.skip("there is a GPU, so Triton compiles; TRITON_INTERPRET=1 interprets instead")
    return "cpu" if request.param == "interpreter" else "cuda"


def run(ids: np.ndarray, layout: ReplicaLayout, policy: str, device: str, version: int = 0) -> Schedule:  # type: ignore[type-arg]
    if device == "cuda":
        return schedule(torch.tensor(ids, device=device), layout, policy, layout_version=version)
    from janus_kernels.triton.scheduling import schedule as on_device

    return on_device(torch.tensor(ids), layout, policy, version)


def check(ids: np.ndarray, layout: ReplicaLayout, device: str, version: int = 0) -> None:  # type: ignore[type-arg]
    for policy in ("aebs", "optimal"):
        got, slow = (
            run(ids, layout, policy, device, version),
            reference_schedule(ids, layout, policy, layout_version=version),
        )
        np.testing.assert_array_equal(got.replica_ids, slow.replica_ids)
        np.testing.assert_array_equal(got.instance_load, slow.instance_load)
        assert (got.a_max, got.digest) == (slow.a_max, slow.digest)


def random_layout(draw: random.Random, experts: int, instances: int) -> ReplicaLayout:
    rows: list[list[int]] = [[] for _ in range(instances)]
    for expert in range(experts):
        count = draw.choice([1, 1, 1, 2, 2, 3, instances])
        for host in draw.sample(range(instances), min(count, instances)):
            rows[host].append(expert)
    for row in rows:
        draw.shuffle(row)
    return ReplicaLayout.from_placement(rows, experts, slots=max(1, *map(len, rows)) + draw.randrange(3))


@pytest.mark.parametrize("seed", range(8))
def test_random_instances(seed: int, device: str) -> None:
    draw = random.Random(seed)
    for _ in range(3):
        experts, instances = draw.randrange(1, 40), draw.randrange(1, 12)
        layout = random_layout(draw, experts, instances)
        topk = draw.randrange(1, min(8, experts) + 1)
        rows = [draw.sample(range(experts), topk) for _ in range(draw.randrange(1, 14))]
        check(np.array(rows, np.int32), layout, device, version=draw.randrange(1 << 64))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_instances(seed: int, device: str) -> None:
    draw = random.Random(seed)
    for _ in range(15):
        experts, instances = draw.randrange(1, 80), draw.randrange(1, 20)
        layout = random_layout(draw, experts, instances)
        topk = draw.randrange(1, min(8, experts) + 1)
        rows = [draw.sample(range(experts), topk) for _ in range(draw.randrange(1, 30))]
        check(np.array(rows, np.int32), layout, device)


@pytest.mark.parametrize(("length", "crowd"), [(1, 1), (12, 2), (33, 7)])
def test_long_augmenting_paths(length: int, crowd: int, device: str) -> None:
    """Expert i lives on i and i+1, instance 0 is crowded: lowering it needs a path over all others."""
    rows: list[list[int]] = [[] for _ in range(length + 1)]
    for expert in range(length):
        rows[expert].append(expert)
        rows[expert + 1].append(expert)
    rows[0] += range(length, length + crowd)
    ids = np.arange(length + crowd, dtype=np.int32)[:, None]
    check(ids, ReplicaLayout.from_placement(rows, length + crowd), device)


def test_where_the_paper_measures(
    device: str, least_a_max: Callable[[list[int], ReplicaLayout], int]
) -> None:
    """E=160, 16 instances x 27 slots, top-6: spare slots as replicas of random experts."""
    draw = random.Random(3)
    rows = [[e for e in range(160) if e % 16 == g] for g in range(16)]
    for row in rows:
        row += draw.sample([e for e in range(160) if e not in row], 17)
    layout = ReplicaLayout.from_placement(rows, 160)
    ids = np.array([draw.sample(range(160), 6) for _ in range(256)], np.int32)
    check(ids, layout, device)
    assert run(ids, layout, "optimal", device).a_max == least_a_max(np.unique(ids).tolist(), layout)


def test_the_largest_size(device: str) -> None:
    draw = random.Random(2)
    layout = random_layout(draw, 1024, 1024)
    ids = np.array([draw.sample(range(1024), 32) for _ in range(2)], np.int32)
    check(ids, layout, device)


def test_no_token_is_fine(device: str) -> None:
    check(np.empty((0, 2), np.int32), ReplicaLayout.from_placement([[0], [1]], 2), device)


def test_what_is_wrong_is_said(device: str) -> None:
    layout = ReplicaLayout.from_placement([[0, 1], [1]], 4)
    with pytest.raises(NoLiveHostError, match=r"\[2, 3\]"):
        run(np.array([[0, 3], [2, 1]]), layout, "optimal", device)
    for bad in (4, -1, 1 << 40):
        with pytest.raises(ValueError, match="topk_ids has values"):
            run(np.array([[0, bad]]), layout, "aebs", device)
    from janus_kernels.triton.scheduling import place, schedule_rows

    with pytest.raises(ValueError, match="allowed on a device: optimal, aebs"):
        schedule_rows(torch.zeros(1, 1, dtype=torch.int32, device=device), place(layout, device), "random")
    with pytest.raises(ValueError, match=r"contiguous torch\.int32"):
        schedule_rows(torch.tensor([[0, 1]], device=device), place(layout, device))
