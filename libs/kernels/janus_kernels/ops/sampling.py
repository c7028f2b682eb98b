"""Sampling a token from logits: a function of (logits, parameters, seed, index) alone."""

from __future__ import annotations

import numpy as np
import torch


def sample(
    logits_V: torch.Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int,
    index: int,
) -> int:
    """One token id.

    The draw is counter-based (Philox keyed by ``seed``, counter ``index``): the same request gives the same
    tokens whatever is in its batch and wherever it goes on.

    Args:
        logits_V: fp32; -inf forbids a token.
        temperature: > 0.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities sum to top_p; the first always stays.
        min_p: keep tokens with at least min_p of the likeliest one's probability.
        seed: u64.
        index: of the token in its stream, from 0.
    """
    scaled = logits_V.float() / temperature
    values, order = torch.sort(scaled, descending=True, stable=True)
    if 0 < top_k < values.shape[0]:
        values, order = values[:top_k], order[:top_k]
    probabilities = values.softmax(-1)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if top_p < 1.0:
        keep &= probabilities.cumsum(-1) - probabilities < top_p
    if min_p > 0.0:
        keep &= probabilities >= min_p * probabilities[0]
    keep[0] = True
    cumulative = torch.where(keep, probabilities, 0.0).double().cumsum(-1).numpy()
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=index)).random()
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(order[min(place, int(np.flatnonzero(cumulative < cumulative[-1]).size))])
