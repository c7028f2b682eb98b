"""a_max(n_e, B) before anything runs: Monte Carlo through the real placement and schedule (paper, section 3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from janus_kernels import POLICIES, ReplicaLayout, schedule
from janus_kernels.replay import REPLAY_POLICIES, ActiveSets, replay
from janus_placement import STRATEGIES, Budget, LayerRouting, Placement, Pool, place, to_hosted

from janus_scaling.checks import ScalingError, choice, whole

GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Batch sizes that are sampled, powers of two; others lie between two of them, linear in log B."""


class AMaxEstimator:
    """Tables of a_max by layer and batch size, one per n_e, made when first asked for.

    Args:
        layers: recent routing of the layers, or of some that stand for all.
        slots: C, slots of an instance and layer.
        policy: schedule; ``optimal`` and ``aebs`` replay distinct experts, the others schedule tokens.
        strategy: placement. ``search`` is best and slowest; ``load-balanced`` comes close under ``optimal``.
        batches: batches sampled of each size.
        largest: sizes of the grid up to here are sampled; beyond it a_max stays as it is there.
        seed: of everything drawn: the same arguments give the same table.

    Raises ScalingError.
    """

    def __init__(
        self,
        layers: Sequence[LayerRouting],
        slots: int,
        *,
        policy: str = "optimal",
        strategy: str = "load-balanced",
        min_replicas: int = 1,
        batches: int = 48,
        largest: int = 4096,
        seed: int = 0,
    ) -> None:
        if not layers or not all(len(layer.samples) for layer in layers):
            raise ScalingError("layers", f"{len(layers)} layers", "at least one, each with routing samples")
        self.num_experts = layers[0].num_experts
        if any(layer.num_experts != self.num_experts for layer in layers):
            raise ScalingError("layers", "of different models", "layers with the same number of experts")
        self.layers = tuple(layers)
        self.slots = whole("slots", slots, 1, 1 << 20)
        self.policy = choice("policy", policy, POLICIES)
        self.strategy = choice("strategy", strategy, STRATEGIES)
        self.min_replicas = min_replicas
        self._batches = whole("batches", batches, 1, 1 << 16)
        self._grid = [size for size in GRID if size <= max(1, largest)]
        self._seed = seed
        self._tables: dict[int, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self._means: dict[int, list[float]] = {}
        self._drawn: dict[tuple[int, bool], ActiveSets] = {}
        """By layer, and whether they are to place for or to judge by: the same for every n_e."""

    def __call__(self, n_e: int, tokens: float) -> float:
        """Mean a_max over layers and batches."""
        # The simulator asks a million times: the grid being powers of two, an interpolation without numpy.
        means, x = self.means(n_e), math.log2(tokens) if tokens > 1 else 0.0
        at = int(x)
        if at >= len(means) - 1:
            return means[-1]
        return means[at] + (x - at) * (means[at + 1] - means[at])

    def means(self, n_e: int) -> list[float]:
        """Mean a_max over layers and batches, at 1, 2, 4, ... tokens up to the largest sampled."""
        if n_e not in self._means:
            self._means[n_e] = self.table(n_e).mean(axis=0).tolist()
        return self._means[n_e]

    def table(self, n_e: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64 [layers, sizes of the grid]: mean a_max."""
        if n_e not in self._tables:
            rows = [self._row(layer, routing, n_e) for layer, routing in enumerate(self.layers)]
            # More tokens never mean fewer experts; sampling noise may say so.
            self._tables[n_e] = np.maximum.accumulate(np.array(rows), axis=1)
        return self._tables[n_e]

    @property
    def _everywhere(self) -> bool:
        """Whether every expert is on every instance, as it then is whatever the strategy."""
        return self.slots >= self.num_experts

    def pool(self, n_e: int) -> Pool:
        """The pool that is placed on. Raises PlacementError where it is too small."""
        return Pool(num_experts=self.num_experts, slots=(self.slots,) * n_e, min_replicas=self.min_replicas)

    def placement(self, layer: int, n_e: int) -> Placement:
        """The placement that the table of ``layer`` is of."""
        if self._everywhere:
            return (tuple(range(self.num_experts)),) * self.pool(n_e).num_instances
        routing, seed = self.layers[layer], self._seed + layer
        if (layer, True) not in self._drawn:
            self._drawn[layer, True] = routing.draw([16, 128], 64, seed)
        known = self._drawn[layer, True]
        policy = self.policy if self.policy in REPLAY_POLICIES else "optimal"
        budget = Budget(evaluations=120, patience=60, seconds=1e6)  # bounded by work, not time: deterministic
        made = place(
            self.pool(n_e),
            routing,
            known,
            self.strategy,
            policy=policy,
            start=layer,
            seed=seed,
            budget=budget,
        )
        return made.placement

    def _row(self, layer: int, routing: LayerRouting, n_e: int) -> list[float]:
        seed = self._seed + 7919 * (layer + 1)  # not the batches that it was placed for
        if self.policy not in REPLAY_POLICIES:
            return self._scheduled(routing, self.placement(layer, n_e), seed)
        if self._everywhere:
            slot_of = np.zeros((self.num_experts, self.pool(n_e).num_instances), np.int32)
        else:
            hosted = to_hosted(self.placement(layer, n_e), self.num_experts)
            slot_of = np.where(hosted, 0, -1).astype(np.int32)
        if (layer, False) not in self._drawn:
            self._drawn[layer, False] = routing.draw(self._grid, self._batches, seed)
        sets = self._drawn[layer, False]
        peaks = replay(sets, slot_of, self.policy).reshape(len(self._grid), self._batches)
        return [float(mean) for mean in peaks.mean(axis=1)]

    def _scheduled(self, routing: LayerRouting, placement: Placement, seed: int) -> list[float]:
        layout = ReplicaLayout.from_placement(placement, self.num_experts)
        rng = np.random.default_rng(seed)
        means = []
        for size in self._grid:
            count = max(4, min(self._batches, 8192 // size))
            rows = rng.integers(0, len(routing.samples), (count, size))
            peaks = [
                schedule(routing.samples[row], layout, self.policy, seed=seed + i).a_max
                for i, row in enumerate(rows)
            ]
            means.append(float(np.mean(peaks)))
        return means


def bound(routing: LayerRouting, placement: Placement, tokens: int, slots: int) -> float:
    """Appendix A: a_max <= min(C, m + sqrt(2 m ln n_e)) + 1 in expectation, whatever the schedule.

    m = max over instances of the sum, over the experts it hosts, of 1 - (1 - p_e)^B.
    """
    p = np.clip(routing.counts * routing.samples.shape[1] / max(1e-300, float(routing.counts.sum())), 0, 1)
    active = 1 - (1 - p) ** tokens
    m = max(float(active[list(row)].sum()) for row in placement)
    return min(float(slots), m + float(np.sqrt(2 * m * np.log(max(1, len(placement)))))) + 1
