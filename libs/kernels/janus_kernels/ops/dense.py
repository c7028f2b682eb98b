"""Dense layers and norms."""

from __future__ import annotations

import torch
from torch.nn import functional

_ROWS = 16
"""Rows per matrix product. A GEMM's rounding depends on its shape, so every product has the same one."""


def linear(x_TD: torch.Tensor, weight_ND: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: fp32 [T, d] by [N, d] -> fp32 [T, N]."""
    weight = weight_ND.float()
    bias = None if bias_N is None else bias_N.float()
    tokens = x_TD.shape[0]
    if tokens == 0:
        return x_TD.new_empty(0, weight.shape[0])
    padded = functional.pad(x_TD.float(), (0, 0, 0, -tokens % _ROWS))
    out = [functional.linear(rows, weight, bias) for rows in padded.split(_ROWS)]
    return (out[0] if len(out) == 1 else torch.cat(out))[:tokens]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, fp32, as transformers rounds it."""
    x = x.float()
    return weight.float() * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def swiglu_ffn(
    x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """(silu(x gate^T) * x up^T) down^T: fp32 [T, d] -> fp32 [T, d]."""
    return linear(functional.silu(linear(x_TD, gate_FD)) * linear(x_TD, up_FD), down_DF)
