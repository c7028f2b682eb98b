"""The pool that replicas of one layer's experts are placed on, and what a placement must keep to.

Terms: E logical experts, n_e instances (MoE ranks), C_g slots of instance g, R(e) replicas of expert e.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from janus_kernels.layout import MAX_EXPERTS, MAX_INSTANCES

Placement = tuple[tuple[int, ...], ...]
"""Per instance the experts it hosts; their order is the slots'."""
Hosted = np.ndarray[Any, np.dtype[np.bool_]]
"""bool [E, n_e]: whether the instance hosts the expert."""


class PlacementError(ValueError):
    """A pool that cannot hold the experts, or a placement that breaks the pool's rules; says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Instances and rules. Raises PlacementError when no placement can keep to them."""

    num_experts: int
    """E, 1..1024."""
    slots: tuple[int, ...]
    """C_g of each instance."""
    nodes: tuple[int, ...] = ()
    """Node of each instance; default: all on one."""
    min_replicas: int = 1
    """Least replicas of every expert, on distinct instances, and on distinct nodes while there are enough."""

    def __post_init__(self) -> None:
        count = len(self.slots)
        if not 1 <= self.num_experts <= MAX_EXPERTS:
            raise PlacementError(f"num_experts = {self.num_experts}; allowed: 1..{MAX_EXPERTS}")
        if not 1 <= count <= MAX_INSTANCES:
            raise PlacementError(f"{count} instances; allowed: 1..{MAX_INSTANCES}")
        if min(self.slots) < 0:
            raise PlacementError(f"slots of an instance = {min(self.slots)}; allowed: 0 or more")
        if not self.nodes:
            object.__setattr__(self, "nodes", (0,) * count)
        if len(self.nodes) != count:
            raise PlacementError(f"nodes names {len(self.nodes)} instances; there are {count}")
        if not 1 <= self.min_replicas <= count:
            raise PlacementError(f"min_replicas = {self.min_replicas}; allowed: 1..{count}, one an instance")
        usable = sum(min(slots, self.num_experts) for slots in self.slots)
        if usable < self.num_experts * self.min_replicas:
            raise PlacementError(
                f"{usable} slots cannot hold {self.min_replicas} replicas of {self.num_experts} experts"
            )

    @property
    def num_instances(self) -> int:
        """n_e."""
        return len(self.slots)

    @property
    def capacities(self) -> tuple[int, ...]:
        """Slots of each instance that can be of use: a second copy on one instance is of none."""
        return tuple(min(slots, self.num_experts) for slots in self.slots)

    def check(self, placement: Sequence[Sequence[int]]) -> None:
        """Raise PlacementError unless ``placement`` keeps to the rules."""
        if len(placement) != self.num_instances:
            raise PlacementError(
                f"placement of {len(placement)} instances; the pool has {self.num_instances}"
            )
        replicas: Counter[int] = Counter()
        for g, row in enumerate(placement):
            if len(row) > self.slots[g]:
                raise PlacementError(f"instance {g} hosts {len(row)} experts in {self.slots[g]} slots")
            if len(set(row)) < len(row):
                raise PlacementError(f"instance {g} hosts an expert twice: {sorted(row)}")
            if any(not 0 <= expert < self.num_experts for expert in row):
                raise PlacementError(f"instance {g} hosts {sorted(row)}; allowed: 0..{self.num_experts - 1}")
            replicas.update(row)
        few = [e for e in range(self.num_experts) if replicas[e] < self.min_replicas]
        if few:
            raise PlacementError(f"experts {few[:8]} have fewer than {self.min_replicas} replicas")


def to_hosted(placement: Sequence[Sequence[int]], num_experts: int) -> Hosted:
    """bool [E, n_e]."""
    hosted = np.zeros((num_experts, len(placement)), bool)
    for g, row in enumerate(placement):
        hosted[list(row), g] = True
    return hosted


def from_hosted(hosted: Hosted, like: Sequence[Sequence[int]] | None = None) -> Placement:
    """Placement of ``hosted``; experts that ``like`` has on the same instance keep their order there, and slots
    freed are filled first, so that as few slots as possible change."""
    rows: list[tuple[int, ...]] = []
    for g in range(hosted.shape[1]):
        wanted = np.flatnonzero(hosted[:, g]).tolist()
        if like is None or g >= len(like):
            rows.append(tuple(wanted))
            continue
        kept, new = set(wanted) & set(like[g]), [e for e in wanted if e not in set(like[g])]
        row: list[int] = []
        for expert in like[g]:
            if expert in kept:
                row.append(expert)
            elif new:
                row.append(new.pop(0))
        rows.append(tuple(row + new))
    return tuple(rows)
