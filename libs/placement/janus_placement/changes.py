"""From one placement to another: what moves, and whether it pays.

A change is worth what it saves on batches it was not made for, less the doubt about that, over a horizon; it costs
the time its weights take to load. Without that doubt noise alone would move experts for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from janus_kernels.replay import ActiveSets, replay

from janus_placement.pool import Placement, Pool, from_hosted, to_hosted


@dataclass(frozen=True, slots=True)
class Change:
    """What reaching ``target`` takes; pairs are (instance, expert)."""

    target: Placement
    loads: tuple[tuple[int, int], ...]
    drops: tuple[tuple[int, int], ...]

    def bytes(self, expert_bytes: int) -> int:
        """Bytes of weights to load, ``expert_bytes`` an expert."""
        return len(self.loads) * expert_bytes


def plan_change(current: Sequence[Sequence[int]], target: Sequence[Sequence[int]], pool: Pool) -> Change:
    """The change from ``current`` to ``target`` that loads the fewest replicas.

    Instances of one node with as many slots are equals: which of them gets which set of experts is chosen so that
    most are there already (an assignment problem). Experts that stay keep their slots. ``current`` may have fewer
    instances than the pool, or hold what the pool no longer allows.
    """
    from scipy.optimize import (
        linear_sum_assignment,  # here, for those who never plan: it takes a while to import
    )

    pool.check(target)
    have = np.zeros((pool.num_experts, pool.num_instances), bool)
    known = list(current)[: pool.num_instances]
    have[:, : len(known)] = to_hosted(known, pool.num_experts)
    want = to_hosted(target, pool.num_experts)
    kinds = list(zip(pool.nodes, pool.slots, strict=True))
    for kind in dict.fromkeys(kinds):
        equal = [g for g, other in enumerate(kinds) if other == kind]
        overlap = have[:, equal].T.astype(np.int64) @ want[:, equal].astype(np.int64)
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        want[:, [equal[r] for r in rows]] = want[:, [equal[c] for c in columns]]
    loads = tuple((int(g), int(e)) for g, e in zip(*np.nonzero((want & ~have).T), strict=True))
    drops = tuple((int(g), int(e)) for g, e in zip(*np.nonzero((have & ~want).T), strict=True))
    return Change(from_hosted(want, like=known), loads, drops)


def stages(
    loads: Mapping[int, Sequence[tuple[int, int]]], room: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Which layers to change together, in turn, where instances hold few replicas beside those that they serve.

    Args:
        loads: (instance, expert) to load, by layer.
        room: replicas that each instance can hold beside; 0: any number.

    Returns the stages, in none of which an instance loads more than it has room for, and the layers that alone need
    more. Layers keep their order; as few stages as that allows.
    """
    made: list[list[int]] = []
    never: list[int] = []
    used: Counter[int] = Counter()
    for layer, pairs in loads.items():
        needed = Counter(instance for instance, _ in pairs)
        if any(room[g] and count > room[g] for g, count in needed.items()):
            never.append(layer)
            continue
        if not made or any(room[g] and used[g] + count > room[g] for g, count in needed.items()):
            made.append([])
            used = Counter()
        made[-1].append(layer)
        used.update(needed)
    return made, never


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What time on this mesh is worth; measured by whoever asks."""

    seconds_per_expert: float
    """beta: seconds that a layer takes longer for one more activated expert on its fullest instance."""
    steps_per_second: float
    """Steps that the layer runs."""
    load_seconds: float
    """Seconds of the mesh's time that loading one replica costs."""
    switch_seconds: float = 0.0
    """And switching to another layout, whatever it changes: once for all layers."""
    horizon_s: float = 300.0
    """Seconds over which a change must have paid for itself."""
    doubt: float = 3.0
    """Standard errors that the saving is lowered by before it counts."""
    least: float = 0.01
    """Share of a layer's a_max that a change must save: less is not worth anybody's attention, whatever it costs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to make a change, and why."""

    go: bool
    gain: float
    """Mean of a_max now less a_max then, over the batches."""
    gain_error: float
    """Its standard error."""
    saving_s: float
    """Seconds saved over the horizon, the doubt taken off."""
    cost_s: float
    """Seconds that loading costs."""
    reason: str


def judge(
    current: Sequence[Sequence[int]],
    change: Change,
    sets: ActiveSets,
    prices: Prices,
    policy: str = "optimal",
) -> Verdict:
    """Judge one layer's change on ``sets``, which must not be the batches that the target was searched on."""
    cost = len(change.loads) * prices.load_seconds
    if not change.loads and not change.drops:
        return Verdict(False, 0.0, 0.0, 0.0, 0.0, "nothing would move")
    before, after = (
        replay(sets, np.where(to_hosted(p, sets.num_experts), 0, -1).astype(np.int32), policy).astype(
            np.float64
        )
        for p in (current, change.target)
    )
    difference = before - after
    gain = float(difference.mean()) if len(difference) else 0.0
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else np.inf
    sure = gain - prices.doubt * error
    saving = max(0.0, sure) * prices.seconds_per_expert * prices.steps_per_second * prices.horizon_s
    least = prices.least * float(before.mean()) if len(before) else 0.0
    if sure <= 0:
        reason = f"a gain of {gain:.2f} +- {error:.2f} in a_max is not sure"
    elif gain <= least:
        reason = f"a gain of {gain:.2f} +- {error:.2f} in a_max is less than {prices.least:.0%} of it"
    elif saving <= cost:
        reason = f"saves {saving:.2f} s in {prices.horizon_s:.0f} s and costs {cost:.2f} s"
    else:
        reason = f"saves {saving:.2f} s in {prices.horizon_s:.0f} s for {cost:.2f} s of loading"
    return Verdict(sure > 0 and gain > least and saving > cost, gain, error, saving, cost, reason)
