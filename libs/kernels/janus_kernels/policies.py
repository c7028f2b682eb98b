"""The scheduling policies in Python: slow, obvious, and what the compiled ones must equal in every number.

Each policy maps (ids [T, k], activated experts ascending, layout, seed) to the instance of each pair, [T, k].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from janus_kernels.layout import Int32, ReplicaLayout

Policy = Callable[[Int32, list[int], ReplicaLayout, int], Int32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_U64 = (1 << 64) - 1
_LOW = np.uint64(0xFFFFFFFF)
_BLOCK = 256


def _mix(x: Any) -> Any:
    """SplitMix64's finaliser, elementwise on u64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def digest(ids: Int32, layout_version: int, replica_ids: Int32) -> int:
    """u64 of (ids, layout version, assignment), the same on every platform.

    Per block of 256 pairs two independent sums of (id + key) * (replica + key), folded in order.
    """
    with np.errstate(over="ignore"):
        words = _mix(np.arange(1, 2 * _BLOCK + 1, dtype=np.uint64) * _GOLDEN).reshape(_BLOCK, 2).T
        # The top bit keeps a sum with an id from being zero, which would hide its partner.
        id_keys, replica_keys = (
            (words & _LOW) | np.uint64(1 << 31),
            (words >> np.uint64(32)) | np.uint64(1 << 31),
        )
        pairs = ids.ravel().astype(np.uint64), replica_ids.ravel().astype(np.uint64)
        state = _mix(np.uint64(layout_version & _U64) + _GOLDEN) + np.uint64(ids.size)
        for begin in range(0, ids.size, _BLOCK):
            one, other = (values[begin : begin + _BLOCK] for values in pairs)
            first, second = (
                (((one + i[: one.size]) & _LOW) * ((other + r[: one.size]) & _LOW)).sum(dtype=np.uint64)
                for i, r in zip(id_keys, replica_keys, strict=True)
            )
            state = _mix(_mix(state ^ first) + second)
        return int(_mix(state))


def _spread(chosen: dict[int, int], ids: Int32, layout: ReplicaLayout) -> Int32:
    """The instance of each pair, where each expert has one."""
    host_of = np.zeros(layout.num_experts, np.int32)
    for expert, instance in chosen.items():
        host_of[expert] = instance
    instances: Int32 = host_of[ids]
    return instances


def _least_loaded(active: list[int], layout: ReplicaLayout) -> dict[int, int]:
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


def aebs(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """Paper, Algorithm 1: single-replica experts to their host; then each other, ascending, to its least-loaded."""
    del seed
    return _spread(_least_loaded(active, layout), ids, layout)


def optimal(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """AEBS, then experts shifted along augmenting paths until none lowers a fullest instance.

    Unit jobs with restricted hosts: a breadth-first search from a fullest instance over "an expert here has
    a replica there" finds an instance at least two below it if any assignment with a smaller a_max exists:
    otherwise the instances reached hold, together, only experts that live nowhere else.
    """
    del seed
    chosen = _least_loaded(active, layout)
    load = [0] * layout.num_instances
    on: list[set[int]] = [set() for _ in load]
    for expert, instance in chosen.items():
        load[instance] += 1
        on[instance].add(expert)
    floor = -(-len(active) // len(load))
    while max(load) > floor and _shift(load.index(max(load)), max(load), load, on, layout):
        pass
    return _spread(
        {expert: instance for instance, experts in enumerate(on) for expert in experts}, ids, layout
    )


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


def token_balanced(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """Tokens of each expert dealt to its replicas in turn, so that replicas get equal token counts."""
    del seed
    instances = np.zeros(ids.shape, np.int32)
    for expert in active:
        where = ids == expert
        hosts = np.asarray(layout.hosts[expert], np.int32)
        instances[where] = hosts[np.arange(int(where.sum())) % len(hosts)]
    return instances


def random(ids: Int32, active: list[int], layout: ReplicaLayout, seed: int) -> Int32:
    """One replica per activated expert, drawn from (seed, ids, expert) alone: another step draws anew."""
    experts = np.arange(1, layout.num_experts + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        draws = _mix(np.uint64(digest(ids, seed, ids)) + experts * _GOLDEN)
    chosen = {
        expert: layout.hosts[expert][int(draws[expert]) % len(layout.hosts[expert])] for expert in active
    }
    return _spread(chosen, ids, layout)
