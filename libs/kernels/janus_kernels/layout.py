"""Where the replicas of one MoE layer's experts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

MAX_EXPERTS = 1024
MAX_INSTANCES = 1024
Int32 = np.ndarray[Any, np.dtype[np.int32]]


class LayoutError(ValueError):
    """A placement that no layer can have; names the instance, expert and range."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaLayout:
    """Experts hosted by each instance of one MoE layer. Make it with :meth:`from_placement`."""

    num_experts: int
    slots: int
    """Slots per instance."""
    placement: tuple[tuple[int, ...], ...]
    """Experts of each instance, in slot order."""
    slot_of: Int32 = field(repr=False)
    """int32 [E, n_e]: slot of the expert on the instance, -1 where it is not hosted."""
    hosts: tuple[tuple[int, ...], ...] = field(repr=False)
    """Per expert, the instances that host it, ascending."""
    native: Any = field(default=None, repr=False)
    """Compiled form, made at the first schedule."""
    placed: Any = field(default=None, repr=False)
    """The same on a GPU."""

    @property
    def num_instances(self) -> int:
        """n_e."""
        return len(self.placement)

    @classmethod
    def from_placement(
        cls, placement: Sequence[Sequence[int]], num_experts: int, slots: int | None = None
    ) -> Self:
        """Layout from the experts that each instance hosts, in slot order.

        Args:
            placement: per instance (1..1024), its experts; an expert at most once per instance.
            num_experts: E, 1..1024. An expert without a host is allowed until it is activated.
            slots: slots per instance; default: as many as the fullest instance uses.

        Raises LayoutError.
        """
        rows = tuple(tuple(int(expert) for expert in instance) for instance in placement)
        if not 1 <= num_experts <= MAX_EXPERTS:
            raise LayoutError(f"num_experts = {num_experts}; allowed: 1..{MAX_EXPERTS}")
        if not 1 <= len(rows) <= MAX_INSTANCES:
            raise LayoutError(f"{len(rows)} instances; allowed: 1..{MAX_INSTANCES}")
        fullest = max(len(row) for row in rows)
        width = max(1, fullest) if slots is None else int(slots)
        if width < max(1, fullest):
            raise LayoutError(f"slots = {width}, but an instance hosts {fullest} experts")
        slot_of = np.full((num_experts, len(rows)), -1, np.int32)
        hosts: list[list[int]] = [[] for _ in range(num_experts)]
        for instance, row in enumerate(rows):
            for slot, expert in enumerate(row):
                if not 0 <= expert < num_experts:
                    raise LayoutError(
                        f"instance {instance} hosts expert {expert}; allowed: 0..{num_experts - 1}"
                    )
                if slot_of[expert, instance] >= 0:
                    raise LayoutError(f"instance {instance} hosts expert {expert} twice")
                slot_of[expert, instance] = slot
                hosts[expert].append(instance)
        slot_of.setflags(write=False)
        return cls(num_experts, width, rows, slot_of, tuple(tuple(h) for h in hosts))
