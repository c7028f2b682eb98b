"""Routed experts: grouped SwiGLU and a combination whose rounding does not depend on the assignment.

Each weighted output w*y, a float64 product, is rounded to a multiple of 2^-34; sums of such numbers are
exact in float64 while they stay below 2^19, hence the same in any order and over any split of experts over
instances. Adding the partial sums and rounding once to float32 ends it. Larger sums lose the guarantee, not
the value; NaN and infinities stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from janus_kernels.ops.table import backend_of
from janus_kernels.ops.types import (
    SWIGLU,
    Activation,
    ExpertMapping,
    ExpertSet,
    ExpertStats,
    ExpertWeights,
    check,
)

__all__ = ["Activation", "ExpertSet", "ExpertStats", "ExpertWeights", "combine", "expert_ffn"]


def expert_ffn(
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    mine_TK: torch.Tensor,
    experts: ExpertMapping,
    out_TD: torch.Tensor,
    activation: Activation = SWIGLU,
) -> ExpertStats:
    """Partial sum over the (token, expert) pairs that are ``mine``.

    Args:
        x_TD: fp32 hidden states.
        ids_TK: int32 logical expert ids.
        weights_TK: routing weights, fp64 (others are widened).
        mine_TK: bool, the pairs to compute here.
        experts: weights of at least the experts that are mine; an :class:`ExpertSet` is prepared only once.
        out_TD: fp64, overwritten.
        activation: the same for all of them.

    Raises KeyError for an expert that is mine but not in ``experts``.
    """
    tokens, topk = ids_TK.shape
    width = x_TD.shape[-1]
    check("expert_ffn", "x", x_TD, torch.float32, tokens, width)
    check("expert_ffn", "ids", ids_TK, torch.int32, tokens, topk)
    weights_TK = weights_TK.double().contiguous()
    check("expert_ffn", "weights", weights_TK, torch.float64, tokens, topk)
    check("expert_ffn", "mine", mine_TK, torch.bool, tokens, topk)
    check("expert_ffn", "out", out_TD, torch.float64, tokens, width)
    table = backend_of("expert_ffn", x_TD, ids_TK, weights_TK, mine_TK, out_TD)
    if table.name == "triton" and any(e.scales is not None for e in experts.values()):
        raise ValueError("expert_ffn: quantised experts run on CPUs only; load them as bfloat16 on a GPU")
    return table.expert_ffn(x_TD, ids_TK, weights_TK, mine_TK, experts, activation, out_TD)


def combine(partials: Sequence[torch.Tensor], out_TD: torch.Tensor) -> torch.Tensor:
    """Sum of fp64 [T, d] partial sums, rounded once into fp32 ``out_TD``."""
    if not partials:
        raise ValueError("combine: no partial sum; expected at least one")
    check("combine", "out", out_TD, torch.float32, *out_TD.shape)
    for partial in partials:
        check("combine", "a partial sum", partial, torch.float64, *out_TD.shape)
    backend_of("combine", out_TD, *partials).combine(list(partials), out_TD)
    return out_TD
