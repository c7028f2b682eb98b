"""Activation scheduling of one MoE layer: which replica computes each activated expert.

The latency of a layer follows a_max, the largest number of distinct activated experts on one instance, so
that is what the policies (but the baselines) keep small. Every policy is a deterministic function of its
arguments: all MoE workers compute it alike, without a word between them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_kernels.layout import Int32, ReplicaLayout
from janus_kernels.native import NATIVE

MAX_TOPK = 32


class NoLiveHostError(ValueError):
    """Activated experts that no instance of the layout hosts; ``experts`` names them."""

    def __init__(self, experts: list[int]) -> None:
        super().__init__(
            f"no instance hosts the activated experts {experts}; the layout must place each at least once"
        )
        self.experts = experts


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Result of :func:`schedule`."""

    replica_ids: Int32
    """int32 [T, k]: instance * slots + slot"""
    instance_load: Int32
    """int32 [n_e]: distinct activated experts on each instance"""
    a_max: int
    """Largest of ``instance_load``."""
    digest: int
    """u64 over ids, layout version and assignment: equal on workers that decided alike."""


def schedule(
    topk_ids: Any, layout: ReplicaLayout, policy: str = "optimal", *, layout_version: int = 0, seed: int = 0
) -> Schedule:
    """Choose a replica for each (token, chosen expert) of one MoE layer.

    Args:
        topk_ids: logical expert ids, integer [T, k], array or CPU tensor; T >= 0, k in 1..32.
        layout: where replicas are.
        policy: ``optimal`` (the least possible a_max), ``aebs`` (paper, Algorithm 1), ``token-balanced``
            (tokens of an expert spread over its replicas, as EPLB does) or ``random``.
        layout_version: goes into the digest.
        seed: of ``random``.

    Raises ValueError for a wrong shape, id or policy, NoLiveHostError for experts nobody hosts.
    """
    if policy not in _POLICIES:
        raise ValueError(f"policy {policy!r}; allowed: {', '.join(POLICIES)}")
    ids = np.ascontiguousarray(np.asarray(topk_ids), dtype=np.int32)
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= MAX_TOPK:
        raise ValueError(f"topk_ids has shape {ids.shape}; expected [T, k] with k in 1..{MAX_TOPK}")
    if NATIVE is not None and policy in ("optimal", "aebs"):
        return _native_schedule(ids, layout, policy, layout_version)
    return reference_schedule(ids, layout, policy, layout_version=layout_version, seed=seed)


def _native_schedule(ids: Int32, layout: ReplicaLayout, policy: str, layout_version: int) -> Schedule:
    scheduler = layout.native
    if scheduler is None:
        assert NATIVE is not None
        scheduler = NATIVE.Scheduler(layout.slot_of, layout.slots)
        object.__setattr__(layout, "native", scheduler)
    replica_ids = np.empty_like(ids)
    load = np.empty(layout.num_instances, np.int32)
    a_max, digest = scheduler.run(ids, policy == "optimal", layout_version, replica_ids, load)
    if a_max < 0:
        # Something is wrong with the input: the reference finds out what and raises.
        return reference_schedule(ids, layout, policy, layout_version=layout_version)
    return Schedule(replica_ids, load, a_max, digest)


def reference_schedule(
    ids: Int32, layout: ReplicaLayout, policy: str, *, layout_version: int = 0, seed: int = 0
) -> Schedule:
    """The slow, obvious :func:`schedule` that the compiled one is held to."""
    decide = _POLICIES[policy]
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < layout.num_experts:
        raise ValueError(
            f"topk_ids has values {ids.min()}..{ids.max()}; allowed: 0..{layout.num_experts - 1}"
        )
    active = [int(expert) for expert in np.unique(ids)]
    orphans = [expert for expert in active if not layout.hosts[expert]]
    if orphans:
        raise NoLiveHostError(orphans)
    if policy in ("token-balanced", "random"):
        instances = _PER_PAIR[policy](ids, active, layout, seed)
        pairs = (
            np.unique(np.stack([instances.ravel(), ids.ravel()]), axis=1)
            if ids.size
            else np.empty((2, 0), int)
        )
        load = np.bincount(pairs[0].astype(np.int64), minlength=layout.num_instances)
    else:
        host_of = np.zeros(layout.num_experts, np.int32)
        chosen = decide(active, layout)
        for expert, instance in chosen.items():
            host_of[expert] = instance
        instances = host_of[ids]
        load = np.bincount(
            np.fromiter(chosen.values(), np.int64, len(chosen)), minlength=layout.num_instances
        )
    replica_ids = (instances * layout.slots + layout.slot_of[ids, instances]).astype(np.int32)
    digest = _digest(ids, layout_version, replica_ids)
    return Schedule(replica_ids, load.astype(np.int32), int(load.max()), digest)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Any) -> Any:
    """SplitMix64's finaliser, elementwise on u64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _digest(ids: Int32, layout_version: int, replica_ids: Int32) -> int:
    with np.errstate(over="ignore"):
        words = ids.ravel().astype(np.uint64) << np.uint64(32) | replica_ids.ravel().astype(np.uint64)
        order = np.arange(1, words.size + 1, dtype=np.uint64) * _GOLDEN
        total = _mix(np.uint64(layout_version) + _GOLDEN) + np.uint64(words.size)
        return int(_mix(total + _mix(words + order).sum(dtype=np.uint64)))


def _aebs(active: list[int], layout: ReplicaLayout) -> dict[int, int]:
    """Single-replica experts to their host; then each other, ascending, to its least-loaded host."""
    load = [0] * layout.num_instances
    chosen: dict[int, int] = {}
    for expert in active:
        hosts = layout.hosts[expert]
        if len(hosts) == 1:
            chosen[expert] = hosts[0]
            load[hosts[0]] += 1
    for expert in active:
        if expert not in chosen:
            best = min(layout.hosts[expert], key=lambda instance: (load[instance], instance))
            chosen[expert] = best
            load[best] += 1
    return chosen


def _optimal(active: list[int], layout: ReplicaLayout) -> dict[int, int]:
    """AEBS, then experts shifted along augmenting paths until no path lowers a fullest instance.

    Unit jobs with restricted hosts: a breadth-first search from a fullest instance over "an expert here has
    a replica there" finds an instance at least two below it if any assignment with a smaller a_max exists.
    """
    chosen = _aebs(active, layout)
    load = [0] * layout.num_instances
    on: list[set[int]] = [set() for _ in load]
    for expert, instance in chosen.items():
        load[instance] += 1
        on[instance].add(expert)
    while True:
        peak = max(load)
        moved = False
        for start in range(len(load)):
            if load[start] == peak and _shift(start, peak, load, on, layout):
                moved = True
        if not moved or max(load) == peak:
            # A fullest instance that cannot be lowered bounds every assignment from below.
            break
    return {expert: instance for instance, experts in enumerate(on) for expert in experts}


def _shift(start: int, peak: int, load: list[int], on: list[set[int]], layout: ReplicaLayout) -> bool:
    came: dict[int, tuple[int, int]] = {start: (-1, -1)}
    queue = deque([start])
    while queue:
        instance = queue.popleft()
        for expert in sorted(on[instance]):
            for target in layout.hosts[expert]:
                if target in came:
                    continue
                came[target] = (instance, expert)
                if load[target] <= peak - 2:
                    load[start] -= 1
                    load[target] += 1
                    while target != start:
                        source, moved = came[target]
                        on[source].remove(moved)
                        on[target].add(moved)
                        target = source
                    return True
                queue.append(target)
    return False


def _token_balanced(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """Tokens of each expert dealt to its replicas in turn, so that replicas get equal token counts."""
    del seed
    instances = np.zeros(ids.shape, np.int32)
    for expert in active:
        where = ids == expert
        hosts = np.asarray(layout.hosts[expert], np.int32)
        instances[where] = hosts[np.arange(int(where.sum())) % len(hosts)]
    return instances


def _random(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """One replica per activated expert, drawn from (seed, expert) alone."""
    instances = np.zeros(ids.shape, np.int32)
    for expert in active:
        hosts = layout.hosts[expert]
        draw = int.from_bytes(hashlib.blake2b(f"{seed}:{expert}".encode(), digest_size=8).digest(), "little")
        instances[ids == expert] = hosts[draw % len(hosts)]
    return instances


_PER_PAIR: dict[str, Callable[[Int32, list[int], ReplicaLayout, int], Int32]] = {
    "token-balanced": _token_balanced,
    "random": _random,
}
_POLICIES: dict[str, Callable[[list[int], ReplicaLayout], dict[int, int]]] = {
    "optimal": _optimal,
    "aebs": _aebs,
    "token-balanced": _aebs,
    "random": _aebs,
}
POLICIES = tuple(_POLICIES)
"""Names of the policies, the default first."""
