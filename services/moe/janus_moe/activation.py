"""What the schedule did to which layers and experts, in groups of layers so that the numbers stay few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from janus_kernels import ReplicaLayout, Schedule

GROUPS = 4
HELD = 1 << 18
"""Ids held until they are counted."""


class LayerGroups:
    """At most GROUPS groups of neighbouring MoE layers, with counts per group and expert."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts
        groups = min(GROUPS, layers)
        self._group = [layer * groups // layers for layer in range(layers)]
        self._passes = [0] * groups
        self._a_max = [0] * groups
        self._bound = [0] * groups
        self._tokens_GE = np.zeros((groups, experts), np.int64)
        self._expert_of: list[npt.NDArray[np.intp]] = []
        self._mine: list[tuple[slice, npt.NDArray[np.intp]]] = []
        self._pending: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(layers)]
        self._held = 0

    def adopt(self, layouts: Sequence[ReplicaLayout], rank: int) -> None:
        """Count for instance ``rank`` of these layouts, one per layer, from now on."""
        self._count()  # what is pending is of the layout before
        self._expert_of, self._mine = [], []
        for layout in layouts:
            expert_of = np.zeros(layout.num_instances * layout.slots, np.intp)  # an empty slot has no tokens
            for instance, row in enumerate(layout.placement):
                expert_of[instance * layout.slots :][: len(row)] = row
            here = np.array(layout.placement[rank], np.intp)
            first = rank * layout.slots
            self._expert_of.append(expert_of)
            self._mine.append((slice(first, first + len(here)), here))

    def add(self, layer: int, plan: Schedule, *, spreads: bool) -> None:
        """Count one pass by its schedule. ``spreads``: the policy may give an expert's tokens to several replicas."""
        group = self._group[layer]
        if spreads:
            distinct = len(np.unique(self._expert_of[layer][plan.replica_ids]))
        else:
            distinct = int(plan.instance_load.sum())
        self._passes[group] += 1
        self._a_max[group] += plan.a_max
        self._bound[group] += -(-distinct // len(plan.instance_load))
        # Counted many passes at a time: a pass of few tokens takes less than numpy's calls would.
        self._pending[layer].append(plan.replica_ids.reshape(-1))
        self._held += plan.replica_ids.size
        if self._held > HELD:
            self._count()

    def _count(self) -> None:
        for layer, pending in enumerate(self._pending):
            if pending:
                counts = np.bincount(np.concatenate(pending), minlength=len(self._expert_of[layer]))
                slots, experts = self._mine[layer]
                self._tokens_GE[self._group[layer], experts] += counts[slots]
                pending.clear()
        self._held = 0

    def report(self) -> list[dict[str, Any]]:
        """``janus.v1.LayerGroupStats`` of each group, as JSON."""
        self._count()
        groups = range(len(self._passes))
        return [
            {
                "first_layer": self._group.index(g),
                "last_layer": self._layers - 1 - self._group[::-1].index(g),
                "passes": self._passes[g],
                "a_max_sum": self._a_max[g],
                "a_max_bound_sum": self._bound[g],
                "expert_tokens": self._tokens_GE[g].tolist(),
            }
            for g in groups
        ]
