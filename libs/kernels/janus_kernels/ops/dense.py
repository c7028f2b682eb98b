"""Dense layers and norms."""

from __future__ import annotations

import torch
from torch.nn import functional

from janus_kernels.native import NATIVE

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Weight dtypes as the compiled kernels number them."""
_ROWS = 16
"""Rows per product in plain torch. A GEMM's rounding depends on its shape, so every product has the same."""


def linear(x_TD: torch.Tensor, weight_ND: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: fp32 [T, d] by float [N, d] -> fp32 [T, N]."""
    x, weight = fp32(x_TD), weight_ND
    if NATIVE is None or not weight.is_contiguous() or weight.dtype not in DTYPE_CODES:
        return reference_linear(x, weight, bias_N)
    if x.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"linear: x {tuple(x.shape)} by weight {tuple(weight.shape)}")
    bias = None if bias_N is None else fp32(bias_N)
    out = torch.empty(x.shape[0], weight.shape[0])
    NATIVE.linear(
        x.data_ptr(), x.shape[0], x.shape[1], weight.data_ptr(), DTYPE_CODES[weight.dtype],
        0 if bias is None else bias.data_ptr(), weight.shape[0], out.data_ptr(),
    )  # fmt: skip
    return out


def reference_linear(x: torch.Tensor, weight_ND: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
    """:func:`linear` in plain torch."""
    weight = weight_ND.float()
    bias = None if bias_N is None else bias_N.float()
    tokens = x.shape[0]
    if tokens == 0:
        return x.new_empty(0, weight.shape[0])
    padded = functional.pad(x, (0, 0, 0, -tokens % _ROWS))
    out = [functional.linear(rows, weight, bias) for rows in padded.split(_ROWS)]
    return (out[0] if len(out) == 1 else torch.cat(out))[:tokens]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, fp32."""
    x = fp32(x)
    if NATIVE is None or weight.dtype not in DTYPE_CODES or not weight.is_contiguous():
        return weight.float() * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} by weight {tuple(weight.shape)}")
    out = torch.empty_like(x)
    width = x.shape[-1]
    NATIVE.rms_norm(
        x.data_ptr(),
        x.numel() // width,
        width,
        weight.data_ptr(),
        DTYPE_CODES[weight.dtype],
        eps,
        out.data_ptr(),
    )
    return out


def swiglu_ffn(
    x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """(silu(x gate^T) * x up^T) down^T: fp32 [T, d] -> fp32 [T, d]."""
    return linear(functional.silu(linear(x_TD, gate_FD)) * linear(x_TD, up_FD), down_DF)


def fp32(x: torch.Tensor) -> torch.Tensor:
    """The same values as a contiguous float32 tensor."""
    return x.float().contiguous()
