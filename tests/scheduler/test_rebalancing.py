"""The decisions of rebalancing over virtual hours: they follow the topics, and leave alone what does not change."""

from __future__ import annotations

import numpy as np
import pytest
from janus_placement import Prices
from janus_testing.rebalancing import Topics, VirtualMesh

PRICES = Prices(seconds_per_expert=0.3e-3, steps_per_second=20.0, load_seconds=0.002, switch_seconds=0.1)


def virtual(experts: int, instances: int, slots: int, *, seed: int, layers: int = 2) -> VirtualMesh:
    topics = Topics(experts, 8 if experts > 8 else 2, layers, seed=seed)
    return VirtualMesh(topics, instances, slots, 16, PRICES, seed=seed, steps_per_s=2.0)


@pytest.mark.parametrize(
    ("experts", "instances", "slots", "hours"),
    [
        (8, 6, 2, 1.0),
        pytest.param(64, 6, 12, 3.0, marks=pytest.mark.slow),
        pytest.param(64, 8, 9, 3.0, marks=pytest.mark.slow),
    ],
)
def test_at_most_one_useless_move_an_hour_when_nothing_changes(
    experts: int, instances: int, slots: int, hours: float
) -> None:
    looks = virtual(experts, instances, slots, seed=3).run(3600 * hours, lambda now: None)
    later = [look for look in looks if look.time_s > 120]
    useless = [look for look in later if look.moved and look.a_max_next > look.a_max - 0.01]
    assert len(useless) <= hours, useless
    assert looks[-1].a_max_next <= 1.03 * looks[-1].best


@pytest.mark.parametrize(
    ("experts", "instances", "slots"), [(8, 6, 2), pytest.param(64, 8, 9, marks=pytest.mark.slow)]
)
def test_a_max_recovers_within_two_looks_of_a_new_topic(experts: int, instances: int, slots: int) -> None:
    """Topics of a minute, looks of half a minute: most of what the change has cost is won back."""
    looks = virtual(experts, instances, slots, seed=1, layers=4).run(7 * 60, lambda now: int(now // 60) % 6)
    first, second = looks[2::2], looks[3::2]
    lost = np.mean([look.a_max - look.best for look in first])
    left = np.mean([look.a_max_next - look.best for look in second])
    assert lost > 0.1, "the topics differ"
    assert left < 0.4 * lost, (lost, left)
    assert np.mean([look.a_max_next / look.best for look in second]) < 1.05


def test_small_savings_of_many_layers_do_not_move_anything_unless_the_switch_is_repaid() -> None:
    dear = Prices(seconds_per_expert=0.3e-3, steps_per_second=20.0, load_seconds=0.002, switch_seconds=1e3)
    mesh = virtual(8, 6, 2, seed=1)
    mesh.prices = dear
    looks = mesh.run(3 * 60, lambda now: int(now // 60))
    assert not any(look.moved or look.loads for look in looks)
