"""Sampling a token from logits: a function of (logits, parameters, seed, index) alone."""

from __future__ import annotations

import torch

from janus_kernels.ops.table import backend
from janus_kernels.ops.types import fp32

_U64 = (1 << 64) - 1


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
        temperature: >= 0; at 0 the likeliest token is taken, the lowest id among equals.
        top_k: keep the k likeliest (lowest ids first among equals); 0 keeps all.
        top_p: of those, keep the likeliest tokens whose probabilities sum to top_p; the first always stays.
        min_p: keep tokens with at least min_p of the likeliest one's probability.
        seed: u64; larger or negative numbers are taken modulo 2^64.
        index: of the token in its stream, from 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}; allowed: 0 and more")
    if temperature == 0:
        return int(torch.argmax(logits_V))
    return backend().sample(fp32(logits_V), temperature, top_k, top_p, min_p, seed & _U64, index & _U64)
