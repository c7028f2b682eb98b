"""From logits to a token: penalties, bias, what is allowed, and the draw. Functions of their arguments alone."""

from __future__ import annotations

import numpy as np
import torch

from janus_kernels.ops.table import backend
from janus_kernels.ops.types import fp32

_U64 = (1 << 64) - 1


def penalize(
    logits_V: torch.Tensor,
    ids_N: torch.Tensor,
    counts_N: torch.Tensor,
    *,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
) -> torch.Tensor:
    """New logits [V]: tokens that were there before become less (or more) likely.

    Args:
        logits_V: fp32.
        ids_N: int64, distinct: the tokens of prompt and output.
        counts_N: fp32: how often each is in the output; 0 for one that only the prompt has.
        repetition: > 0; a listed token's logit is divided by it when positive, else multiplied (CTRL,
            arXiv 1909.05858), as transformers does.
        frequency, presence: taken off for each time, and once, that the token is in the output, as OpenAI does.
    """
    found_N = logits_V[ids_N]
    if repetition != 1.0:
        found_N = torch.where(found_N < 0, found_N * repetition, found_N / repetition)
    if frequency or presence:
        found_N = found_N - (frequency * counts_N + presence * (counts_N > 0))
    return logits_V.index_copy(0, ids_N, found_N)


def add_bias(logits_V: torch.Tensor, ids_N: torch.Tensor, bias_N: torch.Tensor) -> torch.Tensor:
    """New logits [V] with fp32 ``bias_N`` added at the distinct int64 ``ids_N``."""
    return logits_V.index_add(0, ids_N, bias_N)


def forbid(logits_V: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """New logits [V], -inf at the int64 ``ids_N``."""
    return logits_V.index_fill(0, ids_N, float("-inf"))


def allow(logits_V: torch.Tensor, bits: bytes) -> torch.Tensor:
    """New logits [V], -inf wherever ``bits`` (bit v of the string is token v, lowest bit of a byte first) is 0.

    Tokens past the end of ``bits`` are forbidden.
    """
    count = logits_V.shape[0]
    mask = np.zeros(count, dtype=bool)
    given = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").astype(bool)
    mask[: len(given)] = given
    return logits_V.masked_fill(torch.from_numpy(~mask).to(logits_V.device), float("-inf"))


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
    return backend(logits_V.device).sample(
        fp32(logits_V), temperature, top_k, top_p, min_p, seed & _U64, index & _U64
    )
