"""Quantised weights made float, at load: FP8 in blocks (DeepSeek-V3) and MXFP4 (gpt_oss)."""

from __future__ import annotations

import torch

# The sixteen values of E2M1, the element of MXFP4 (OCP Microscaling Formats 1.0, section 5.3.3).
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def from_fp8(weight_NK: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """fp32 [N, K]: each block of ``block`` rows and columns times its scale.

    Args:
        weight_NK: float8_e4m3fn.
        scales: float [ceil(N / block[0]), ceil(K / block[1])], DeepSeek's ``weight_scale_inv``.
        block: rows and columns of a block; those at the edges may be smaller.
    """
    rows, columns = weight_NK.shape
    spread = scales.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight_NK.float() * spread


def from_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """bfloat16 [..., 32 G], exact: an element has one bit of mantissa and every scale is a power of two.

    Args:
        blocks: uint8 [..., G, 16], two elements a byte, the lower half first.
        scales: uint8 [..., G], exponents of two with a bias of 127.
    """
    table = torch.tensor(_FP4)
    elements = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1).flatten(-2)
    return torch.ldexp(elements, scales.int()[..., None] - 127).flatten(-2).to(torch.bfloat16)
