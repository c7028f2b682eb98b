"""Counts by layer group and expert, against sets and loops, on schedules of every policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from janus_kernels import ReplicaLayout, schedule
from janus_moe import activation
from janus_moe.activation import GROUPS, LayerGroups


@pytest.mark.parametrize("policy", ["optimal", "aebs", "token-balanced", "random"])
@pytest.mark.parametrize("layers", [1, 3, 4, 10])
def test_counts_are_those_of_a_loop(policy: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "HELD", 50)
    draw = np.random.default_rng()
    experts, instances, slots = 12, 3, 6
    layouts = []
    for _ in range(layers):
        hosts = [list(range(i, experts, instances)) for i in range(instances)]
        spare = [
            draw.choice([e for e in range(experts) if e not in h], slots - len(h), replace=False)
            for h in hosts
        ]
        placement = [[*h, *map(int, s)] for h, s in zip(hosts, spare, strict=True)]
        layouts.append(ReplicaLayout.from_placement(placement, num_experts=experts))
    ranks = [LayerGroups(layers, experts) for _ in range(instances)]
    for rank, groups_of_rank in enumerate(ranks):
        groups_of_rank.adopt(layouts, rank)
    groups = min(GROUPS, layers)
    passes, a_max, bound = [0] * groups, [0] * groups, [0] * groups
    tokens = [[0] * experts for _ in range(groups)]
    for _ in range(40):
        layer, count = int(draw.integers(layers)), int(draw.integers(0, 9))
        ids = np.array([draw.choice(experts, 2, replace=False) for _ in range(count)], np.int32).reshape(
            count, 2
        )
        plan = schedule(ids, layouts[layer], policy)
        for groups_of_rank in ranks:
            groups_of_rank.add(layer, plan, spreads=policy == "token-balanced")
        group = layer * groups // layers
        least = math.ceil(len(set(ids.reshape(-1).tolist())) / instances)
        assert least <= plan.a_max
        passes[group] += 1
        a_max[group] += plan.a_max
        bound[group] += least
        for expert in ids.reshape(-1):
            tokens[group][expert] += 1
    reports = [groups_of_rank.report() for groups_of_rank in ranks]
    covered = [layer for g in reports[0] for layer in range(g["first_layer"], g["last_layer"] + 1)]
    assert covered == list(range(layers)), "each layer is in one group"
    for group in range(groups):
        for report in reports:  # every worker sees the whole cohort's schedule
            found = report[group]
            assert (found["passes"], found["a_max_sum"], found["a_max_bound_sum"]) == (
                passes[group], a_max[group], bound[group],
            )  # fmt: skip
        assert np.sum([r[group]["expert_tokens"] for r in reports], axis=0).tolist() == tokens[group]
