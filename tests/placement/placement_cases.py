"""Random pools and routing for the placement tests."""

from __future__ import annotations

import numpy as np
from janus_placement import LayerRouting, Pool


def skewed_samples(experts: int, top_k: int, tokens: int, seed: int, topics: int = 4) -> np.ndarray:
    """int32 [tokens, k]: popular experts, and experts that go together by topic."""
    rng = np.random.default_rng(seed)
    popular = -0.7 * np.log(rng.permutation(experts) + 1.0)
    taste = popular + 1.5 * rng.standard_normal((topics, experts))
    scores = taste[rng.integers(0, topics, tokens)] + rng.gumbel(size=(tokens, experts))
    return np.argsort(-scores, axis=1)[:, :top_k].astype(np.int32)


def routing(experts: int, top_k: int = 2, tokens: int = 300, seed: int = 0) -> LayerRouting:
    return LayerRouting(skewed_samples(experts, top_k, tokens, seed), experts)


def random_pool(seed: int) -> Pool:
    """Uneven slots, one to three nodes, one to three replicas of each expert at least."""
    rng = np.random.default_rng(seed)
    while True:
        experts, instances = int(rng.integers(1, 40)), int(rng.integers(1, 9))
        least = int(rng.integers(1, min(3, instances) + 1))
        slots = rng.integers(0, 2 * experts * least // instances + 2, instances)
        if np.minimum(slots, experts).sum() < experts * least:
            continue
        nodes = np.sort(rng.integers(0, int(rng.integers(1, 4)), instances))
        return Pool(
            num_experts=experts, slots=tuple(slots.tolist()), nodes=tuple(nodes.tolist()), min_replicas=least
        )
