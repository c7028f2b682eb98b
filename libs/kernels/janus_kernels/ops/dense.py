"""Dense layers and norms."""

from __future__ import annotations

import torch

from janus_kernels.ops.quantize import QuantizedWeight
from janus_kernels.ops.table import backend_of
from janus_kernels.ops.types import fp32


def linear(
    x_TD: torch.Tensor, weight_ND: torch.Tensor | QuantizedWeight, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b: fp32 [T, d] by float or quantised [N, d] -> fp32 [T, N]."""
    if isinstance(weight_ND, QuantizedWeight):
        return quantized_linear(x_TD, weight_ND, bias_N)
    if x_TD.dim() != 2 or weight_ND.dim() != 2 or x_TD.shape[1] != weight_ND.shape[1]:
        raise ValueError(f"linear: x {tuple(x_TD.shape)} by weight {tuple(weight_ND.shape)}")
    if bias_N is not None and bias_N.shape != weight_ND.shape[:1]:
        raise ValueError(f"linear: bias {tuple(bias_N.shape)} for weight {tuple(weight_ND.shape)}")
    return backend_of("linear", x_TD, weight_ND, bias_N).linear(
        fp32(x_TD), weight_ND, None if bias_N is None else fp32(bias_N)
    )


def quantized_linear(
    x_TD: torch.Tensor, weight: QuantizedWeight, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b: fp32 [T, d] by a quantised [N, d] -> fp32 [T, N], accumulated in float32."""
    if x_TD.dim() != 2 or x_TD.shape[1] != weight.shape[1]:
        raise ValueError(f"quantized_linear: x {tuple(x_TD.shape)} by weight {weight.shape}")
    if bias_N is not None and bias_N.shape != weight.shape[:1]:
        raise ValueError(f"quantized_linear: bias {tuple(bias_N.shape)} for weight {weight.shape}")
    return backend_of("quantized_linear", x_TD, weight.data, bias_N).quantized_linear(
        fp32(x_TD), weight.data, weight.scale, None if bias_N is None else fp32(bias_N)
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)) over the last dimension, fp32."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} by weight {tuple(weight.shape)}")
    return backend_of("rms_norm", x, weight).rms_norm(fp32(x), weight, eps)


def swiglu_ffn(
    x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """(silu(x gate^T) * x up^T) down^T: fp32 [T, d] -> fp32 [T, d]. Dense layers and shared experts."""
    wide = (gate_FD.shape[0], x_TD.shape[-1])
    if gate_FD.shape != wide or up_FD.shape != wide or down_DF.shape != wide[::-1] or x_TD.dim() != 2:
        raise ValueError(
            f"swiglu_ffn: x {tuple(x_TD.shape)}, gate {tuple(gate_FD.shape)}, up {tuple(up_FD.shape)}, "
            f"down {tuple(down_DF.shape)}; expected [T, d], [f, d], [f, d], [d, f]"
        )
    return backend_of("swiglu_ffn", x_TD, gate_FD, up_FD, down_DF).swiglu(fp32(x_TD), gate_FD, up_FD, down_DF)
