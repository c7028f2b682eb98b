"""Replaying batches: equal to the schedule itself, and to the slow reference, pressure included."""

from __future__ import annotations

import numpy as np
import pytest
from janus_kernels import NoLiveHostError, ReplicaLayout, schedule
from janus_kernels.replay import ActiveSets, reference_replay, replay


def random_case(seed: int) -> tuple[ActiveSets, ReplicaLayout, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    experts, instances = int(rng.integers(1, 90)), int(rng.integers(1, 12))
    hosted = rng.random((experts, instances)) < rng.uniform(0.05, 0.5)
    hosted[np.arange(experts), rng.integers(0, instances, experts)] = True
    layout = ReplicaLayout.from_placement([np.flatnonzero(c).tolist() for c in hosted.T], experts)
    top_k = int(rng.integers(1, min(experts, 8) + 1))
    batches = [
        rng.integers(0, experts, (int(rng.integers(0, 60)), top_k)) for _ in range(int(rng.integers(0, 9)))
    ]
    return ActiveSets.from_ids(batches, experts), layout, batches


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_schedule_and_reference(seed: int) -> None:
    sets, layout, batches = random_case(seed)
    for policy in ("optimal", "aebs"):
        pressure, expected = (np.zeros(layout.slot_of.shape, np.int32) for _ in range(2))
        peaks = replay(sets, layout.slot_of, policy, pressure=pressure)
        assert peaks.tolist() == [schedule(ids, layout, policy).a_max for ids in batches]
        np.testing.assert_array_equal(
            peaks, reference_replay(sets, layout.slot_of, policy, pressure=expected)
        )
        np.testing.assert_array_equal(pressure, expected)


@pytest.mark.parametrize("seed", range(40))
def test_pressure_is_a_witness(seed: int) -> None:
    """Without pressure a batch is at its bound; a batch's experts with pressure cannot leave their instances."""
    sets, layout, _ = random_case(1000 + seed)
    for b in range(len(sets)):
        one = ActiveSets.from_mask(sets.mask()[b : b + 1])
        pressure = np.zeros(layout.slot_of.shape, np.int32)
        peak = int(replay(one, layout.slot_of, pressure=pressure)[0])
        bound = -(-int(one.counts[0]) // layout.num_instances)
        assert (peak > bound) == bool(pressure.any())
        if pressure.any():
            outside = pressure.any(axis=0)
            confined = np.flatnonzero(pressure.any(axis=1))
            assert not (layout.slot_of[confined][:, outside] >= 0).any()
            assert len(confined) > (peak - 1) * int((~outside).sum())  # Hall: no schedule does better


def test_sets_there_and_back() -> None:
    mask = np.random.default_rng(1).random((7, 30)) < 0.3
    sets = ActiveSets.from_mask(mask)
    np.testing.assert_array_equal(sets.mask(), mask)
    np.testing.assert_array_equal(sets.counts, mask.sum(axis=1))
    assert len(ActiveSets.from_mask(np.zeros((0, 5), bool))) == 0


def test_bad_input_is_refused() -> None:
    sets, layout, _ = random_case(3)
    with pytest.raises(ValueError, match="policy 'random'; allowed: optimal, aebs"):
        replay(sets, layout.slot_of, "random")
    with pytest.raises(ValueError, match="expected int32"):
        replay(sets, layout.slot_of[:-1])
    with pytest.raises(ValueError, match=r"expert ids -1..2; allowed: 0..4"):
        ActiveSets.from_ids([np.array([[-1, 2]])], 5)
    with pytest.raises(ValueError, match="shape"):
        ActiveSets.from_mask(np.zeros(3, bool))
    nobody = np.full((4, 2), -1, np.int32)
    nobody[0, 0] = 0
    with pytest.raises(NoLiveHostError, match=r"\[2\]"):
        replay(ActiveSets.from_ids([np.array([[0, 2]])], 4), nobody)
