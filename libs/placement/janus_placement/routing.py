"""What placement knows of a layer's routing: counts, co-activation, and recent samples to replay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from janus_kernels.replay import ActiveSets

Float = np.ndarray[Any, np.dtype[np.float64]]
Int32 = np.ndarray[Any, np.dtype[np.int32]]


class LayerRouting:
    """One layer's recent routing.

    Args:
        samples: integer [S, k], expert ids of sampled tokens, oldest first.
        counts: c(e), float64 [E], activations, decayed; default: those of the samples.

    Raises ValueError for ids out of range.
    """

    def __init__(self, samples: Any, num_experts: int, counts: Float | None = None) -> None:
        ids = np.ascontiguousarray(samples, np.int32)
        if ids.ndim != 2:
            raise ValueError(f"samples have shape {ids.shape}; expected [S, k]")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
            raise ValueError(f"sampled expert ids {ids.min()}..{ids.max()}; allowed: 0..{num_experts - 1}")
        self.num_experts = num_experts
        self.samples: Int32 = ids
        seen = np.bincount(ids.ravel(), minlength=num_experts).astype(np.float64)
        self.counts: Float = seen if counts is None else counts
        self._scale = float(self.counts.sum() / max(1.0, seen.sum()))

    def halves(self) -> tuple[LayerRouting, LayerRouting]:
        """Every other sample, and the rest: what is made from the one can be judged on the other. Same counts."""
        first, second = (LayerRouting(self.samples[i::2], self.num_experts, self.counts) for i in (0, 1))
        return first, second

    @cached_property
    def coactivation(self) -> Float:
        """a(e, e'), float64 [E, E], symmetric, zero diagonal: tokens that activated both, from the samples, scaled
        to the counts."""
        hits = np.zeros((len(self.samples), self.num_experts), np.float32)
        hits[np.arange(len(self.samples))[:, None], self.samples] = 1
        both = (hits.T @ hits).astype(np.float64)
        np.fill_diagonal(both, 0)
        return both * self._scale

    def draw(self, batch_sizes: Sequence[int], per_size: int | None = None, seed: int = 0) -> ActiveSets:
        """Distinct experts of batches of the sizes given, tokens drawn from the samples with replacement.

        ``per_size``: batches of each size; default: 16,384 tokens' worth, at least 128 and at most 1024, which is
        where more of them stopped to help placements made from them (benchmarks/bench_placement.py).
        """
        rng = np.random.default_rng(seed)
        rows = []
        for size in batch_sizes:
            count = per_size if per_size is not None else min(1024, max(128, 16384 // max(1, size)))
            active = np.zeros((count, self.num_experts), bool)
            if len(self.samples):
                chosen = rng.integers(0, len(self.samples), (count, size))
                active[np.arange(count)[:, None], self.samples[chosen].reshape(count, -1)] = True
            rows.append(active)
        return ActiveSets.from_mask(np.concatenate(rows) if rows else np.zeros((0, self.num_experts), bool))
