"""Replaying recorded routing through the real schedule: what a_max a placement would have had.

Placement, the a_max estimator and the simulator ask this thousands of times, so batches are kept as what the
schedule depends on, their distinct experts, and many go through in one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from janus_kernels import policies
from janus_kernels.layout import Int32, ReplicaLayout
from janus_kernels.native import NATIVE
from janus_kernels.scheduling import NoLiveHostError

Int64 = np.ndarray[Any, np.dtype[np.int64]]
REPLAY_POLICIES = ("optimal", "aebs")
"""Those that depend on the distinct experts alone."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveSets:
    """Distinct activated experts of N batches of one layer. Make it with a class method."""

    num_experts: int
    begin: Int64
    """int64 [N + 1]: batch b has experts[begin[b]:begin[b + 1]]."""
    experts: Int32
    """int32 [M], ascending within a batch."""

    def __len__(self) -> int:
        return len(self.begin) - 1

    @classmethod
    def from_mask(cls, active: Any) -> Self:
        """From bool [N, E]."""
        mask = np.asarray(active, bool)
        if mask.ndim != 2:
            raise ValueError(f"active has shape {mask.shape}; expected [N, E]")
        rows, experts = np.nonzero(mask)
        begin = np.searchsorted(rows, np.arange(len(mask) + 1)).astype(np.int64)
        return cls(mask.shape[1], begin, experts.astype(np.int32))

    @classmethod
    def from_ids(cls, batches: Iterable[Any], num_experts: int) -> Self:
        """From expert ids, integer [T_b, k] each, 0..num_experts - 1."""
        rows = []
        for batch in batches:
            ids = np.asarray(batch).ravel()
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
                raise ValueError(f"expert ids {ids.min()}..{ids.max()}; allowed: 0..{num_experts - 1}")
            row = np.zeros(num_experts, bool)
            row[ids] = True
            rows.append(row)
        return cls.from_mask(np.array(rows, bool).reshape(-1, num_experts))

    @property
    def counts(self) -> Int64:
        """int64 [N]: distinct experts of each batch."""
        return np.diff(self.begin)

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool [N, E]."""
        out = np.zeros((len(self), self.num_experts), bool)
        out[np.repeat(np.arange(len(self)), self.counts), self.experts] = True
        return out


def replay(
    sets: ActiveSets, slot_of: Int32, policy: str = "optimal", *, pressure: Int32 | None = None
) -> Int32:
    """a_max of every batch: int32 [N].

    Args:
        slot_of: int32 [E, n_e], :attr:`ReplicaLayout.slot_of`; only whether it is negative matters.
        policy: ``optimal`` or ``aebs``.
        pressure: int32 [E, n_e] to be added to, with ``optimal``, for each batch whose fullest instance a replica
            of that expert on that instance could relieve: 2 if by itself, 1 if with further moves. A batch already
            at its bound adds nothing.

    Raises ValueError, NoLiveHostError.
    """
    if policy not in REPLAY_POLICIES:
        raise ValueError(f"policy {policy!r}; allowed: {', '.join(REPLAY_POLICIES)}")
    if slot_of.ndim != 2 or slot_of.shape[0] != sets.num_experts or slot_of.dtype != np.int32:
        raise ValueError(
            f"slot_of is {slot_of.dtype} {slot_of.shape}; expected int32 [{sets.num_experts}, n_e]"
        )
    if NATIVE is None:
        return reference_replay(sets, slot_of, policy, pressure=pressure)
    peaks = np.empty(len(sets), np.int32)
    scheduler = NATIVE.Scheduler(slot_of, int(slot_of.max(initial=0)) + 1)
    if not scheduler.replay(sets.begin, sets.experts, REPLAY_POLICIES.index(policy), peaks, pressure):
        raise NoLiveHostError(_orphans(sets, slot_of))
    return peaks


def _orphans(sets: ActiveSets, slot_of: Int32) -> list[int]:
    used = np.unique(sets.experts)
    return [int(expert) for expert in used[(slot_of[used] < 0).all(axis=1)]]


def reference_replay(
    sets: ActiveSets, slot_of: Int32, policy: str, *, pressure: Int32 | None = None
) -> Int32:
    """The slow, obvious :func:`replay`."""
    if orphans := _orphans(sets, slot_of):
        raise NoLiveHostError(orphans)
    hosted = slot_of >= 0
    rows = [np.flatnonzero(column).tolist() for column in hosted.T]
    layout = ReplicaLayout.from_placement(rows, sets.num_experts)
    chosen = policies.optimal if policy == "optimal" else policies.aebs
    peaks = np.zeros(len(sets), np.int32)
    for b in range(len(sets)):
        active = sets.experts[sets.begin[b] : sets.begin[b + 1]]
        if not len(active):
            continue
        instances = chosen(active.reshape(-1, 1), active.tolist(), layout, 0).ravel()
        load = np.bincount(instances, minlength=layout.num_instances)
        peaks[b] = load.max()
        if pressure is None or policy != "optimal" or peaks[b] <= -(-len(active) // layout.num_instances):
            continue
        inside = np.zeros(layout.num_instances, bool)
        inside[int(load.argmax())] = True
        while True:  # instances that something on an inside one could move to are inside
            reached = inside | hosted[active[inside[instances]]].any(axis=0)
            if (reached == inside).all():
                break
            inside = reached
        outside = np.flatnonzero(~inside)
        pressure[np.ix_(active[inside[instances]], outside)] += np.where(load[outside] <= peaks[b] - 2, 2, 1)
    return peaks
