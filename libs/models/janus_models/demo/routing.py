"""Router rows whose use is skewed and correlated as in trained models.

A trained router has learnt directions in the hidden space. We take them from data: the centroids of a
spherical k-means over the layer's normed hidden states on a sample text, and each cluster's share is its
prior, as in the posterior of a mixture model. Clusters of real text differ in size (so use is skewed) and lie
at different distances from one another (so some pairs are chosen together often).
"""

from __future__ import annotations

import torch

ITERATIONS = 12
GAP = 1.0
"""Mean logit gap between a token's first and second expert, before priors: weights near 0.73 and 0.27."""


def router_rows(x_TD: torch.Tensor, num_experts: int, seed: int) -> torch.Tensor:
    """fp32 [T, d] normed hidden states of sample text -> fp32 [E, d] router weight."""
    generator = torch.Generator().manual_seed(seed)
    mean = x_TD.mean(0)
    centred = torch.nn.functional.normalize(x_TD - mean, dim=1)
    centroids = _spherical_kmeans(centred, num_experts, generator)
    # Without this a row's product with the mean would favour the same experts for every token.
    axis = mean / mean.norm()
    rows = centroids - (centroids @ axis)[:, None] * axis
    logits = x_TD @ rows.T
    first_two = logits.topk(2, dim=1).values
    shares = torch.bincount(logits.argmax(1), minlength=num_experts).clamp(min=1) / len(x_TD)
    # A router has no bias; every state has about the same product with the mean, which serves as one.
    prior = (shares * num_experts).log()[:, None] * (axis / mean.norm())
    return rows * (GAP / (first_two[:, 0] - first_two[:, 1]).mean()) + prior


def use_histogram(x_TD: torch.Tensor, rows_ED: torch.Tensor, top_k: int) -> list[float]:
    """Share of the token-expert pairs that each expert gets; sums to 1."""
    chosen = (x_TD @ rows_ED.T).topk(top_k, dim=1).indices.flatten()
    counts = torch.bincount(chosen, minlength=rows_ED.shape[0])
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def _spherical_kmeans(unit_TD: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    centroids = unit_TD[_spread_start(unit_TD, k, generator)]
    for _ in range(ITERATIONS):
        nearest = (unit_TD @ centroids.T).argmax(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, unit_TD)
        empty = sums.norm(dim=1) == 0
        sums[empty] = centroids[empty]
        centroids = torch.nn.functional.normalize(sums, dim=1)
    return centroids


def _spread_start(unit_TD: torch.Tensor, k: int, generator: torch.Generator) -> list[int]:
    """k-means++: each next start is drawn in proportion to its squared distance from those chosen."""
    chosen = [int(torch.randint(len(unit_TD), (1,), generator=generator))]
    while len(chosen) < k:
        distance = (1 - (unit_TD @ unit_TD[chosen].T).max(1).values).clamp(min=0)
        chosen.append(int(torch.multinomial(distance + 1e-9, 1, generator=generator)))
    return chosen
