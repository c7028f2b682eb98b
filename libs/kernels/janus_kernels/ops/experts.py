"""Routed experts: grouped SwiGLU and a combination whose rounding does not depend on the assignment.

Each weighted output w*y is exact in float64 and is rounded to a multiple of 2^-34; sums of such numbers are
exact in float64 while they stay below 2^19, hence the same in any order and over any split of experts over
instances. Adding the partial sums and rounding once to float32 ends it. Larger sums lose the guarantee, not
the value; NaN and infinities stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from janus_kernels.ops.dense import swiglu_ffn

GRID = 1.5 * 2.0**18
"""Adding and subtracting it rounds a float64 to a multiple of 2^-34."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert: float32, bfloat16 or float16, contiguous; views on a mapped checkpoint are fine."""

    gate: torch.Tensor
    """[f, d]"""
    up: torch.Tensor
    """[f, d]"""
    down: torch.Tensor
    """[d, f]"""


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What a call computed."""

    calls: int
    """Distinct experts."""
    pairs: int
    """(token, expert) pairs."""


def expert_ffn(
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    mine_TK: torch.Tensor,
    experts: Mapping[int, ExpertWeights],
    out_TD: torch.Tensor,
) -> ExpertStats:
    """Partial sum over the (token, expert) pairs that are ``mine``.

    Args:
        x_TD: fp32 hidden states.
        ids_TK: int32 logical expert ids.
        weights_TK: fp32 routing weights.
        mine_TK: bool, the pairs to compute here.
        experts: weights of at least the experts that are mine.
        out_TD: fp64, overwritten.

    Raises KeyError for an expert that is mine but not in ``experts``.
    """
    out_TD.zero_()
    active = torch.unique(ids_TK[mine_TK]).tolist()
    pairs = 0
    for expert in active:
        rows, columns = torch.where((ids_TK == expert) & mine_TK)
        weights = experts[expert]
        y = swiglu_ffn(x_TD[rows], weights.gate, weights.up, weights.down).double()
        y *= weights_TK[rows, columns].double()[:, None]
        out_TD.index_add_(0, rows, y.add_(GRID).sub_(GRID))
        pairs += rows.shape[0]
    return ExpertStats(len(active), pairs)


def combine(partials: Sequence[torch.Tensor], out_TD: torch.Tensor) -> torch.Tensor:
    """Sum of fp64 [T, d] partial sums, rounded once into fp32 ``out_TD``."""
    total = partials[0] if len(partials) == 1 else partials[0] + partials[1]
    for partial in partials[2:]:
        total += partial
    return out_TD.copy_(total)
