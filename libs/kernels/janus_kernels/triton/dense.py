"""Dense layers, norms and rotary embedding. All are capturable in a CUDA graph: no sync, sizes from shapes alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from janus_kernels.triton.tiles import ROWS, launch, power_of_two, rows_by_rows, silu

_COLUMNS = 32
_INNER = 128
_HEADS = 16


@triton.jit
def _linear(
    x_ptr, w_ptr, bias_ptr, out_ptr, tokens, inner, columns, w_row, w_in,
    BIASED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    x = x_ptr + t.to(tl.int64) * inner
    w = w_ptr + n.to(tl.int64) * w_row
    acc = rows_by_rows(x, t < tokens, w, n < columns, w_in, inner, tl.zeros([M, N], tl.float32), K)
    if BIASED:
        acc += tl.load(bias_ptr + n, mask=n < columns, other=0.0)[None, :]
    out = out_ptr + t[:, None].to(tl.int64) * columns + n[None, :]
    tl.store(out, acc, mask=(t < tokens)[:, None] & (n < columns)[None, :])


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See :class:`OpTable`: fp32 [T, d] by [N, d] of any strides. Tiles and order over d are fixed: batch-invariant."""
    if weight.dtype == torch.float64:
        weight = weight.float()
    (tokens, inner), columns = x.shape, weight.shape[0]
    out = x.new_empty(tokens, columns)
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(tokens, ROWS))
    launch(
        _linear, grid, x, weight, x if bias is None else bias, out, tokens, inner, columns, *weight.stride(),
        BIASED=bias is not None, M=ROWS, N=_COLUMNS, K=_INNER, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _gate_up(
    x_ptr, gate_ptr, up_ptr, out_ptr, tokens, inner, columns, gate_row, gate_in, up_row, up_in,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    x = x_ptr + t.to(tl.int64) * inner
    nothing = tl.zeros([M, N], tl.float32)
    gate = gate_ptr + n.to(tl.int64) * gate_row
    gated = rows_by_rows(x, t < tokens, gate, n < columns, gate_in, inner, nothing, K)
    up = up_ptr + n.to(tl.int64) * up_row
    raised = rows_by_rows(x, t < tokens, up, n < columns, up_in, inner, nothing, K)
    out = out_ptr + t[:, None].to(tl.int64) * columns + n[None, :]
    tl.store(out, silu(gated) * raised, mask=(t < tokens)[:, None] & (n < columns)[None, :])


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """See :class:`OpTable`."""
    gate, up = (w.float() if w.dtype == torch.float64 else w for w in (gate, up))
    (tokens, inner), columns = x.shape, gate.shape[0]
    h = x.new_empty(tokens, columns)
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(tokens, ROWS))
    launch(
        _gate_up, grid, x, gate, up, h, tokens, inner, columns, *gate.stride(), *up.stride(),
        M=ROWS, N=_COLUMNS, K=_INNER, num_warps=4,
    )  # fmt: skip
    return linear(h, down, None)


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, width, weight_in, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    there = i < width
    x = tl.load(x_ptr + row + i, mask=there, other=0.0)
    weight = tl.load(weight_ptr + i * weight_in, mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(x * x, axis=0) / width
    tl.store(out_ptr + row + i, weight * (x * (1.0 / tl.sqrt_rn(mean + eps))), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See :class:`OpTable`; one program per row, its sum in an order that depends on the width alone."""
    out, width = torch.empty_like(x), x.shape[-1]
    block = power_of_two(width)
    rows = x.numel() // width if width else 0
    launch(
        _rms_norm, (rows,), x, weight, out, width, weight.stride(0), eps,
        BLOCK=block, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return out


@triton.jit
def _rotary(
    x_ptr, cos_ptr, sin_ptr, positions_ptr, out_ptr, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    t = tl.program_id(0)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, HALF)
    there = (h < heads)[:, None] & (i < half)[None, :]
    angle = tl.load(positions_ptr + t) * half + i
    cos = tl.load(cos_ptr + angle, mask=i < half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=i < half, other=0.0)[None, :]
    at = (t.to(tl.int64) * heads + h[:, None]) * (2 * half) + i[None, :]
    first = tl.load(x_ptr + at, mask=there, other=0.0)
    second = tl.load(x_ptr + at + half, mask=there, other=0.0)
    tl.store(out_ptr + at, first * cos - second * sin, mask=there)
    tl.store(out_ptr + at + half, second * cos + first * sin, mask=there)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """See :class:`OpTable`; each product and sum is rounded, as in plain torch."""
    out = torch.empty_like(x)
    tokens, heads, width = x.shape
    launch(
        _rotary, (tokens, triton.cdiv(heads, _HEADS)), x, cos, sin, positions, out, heads, width // 2,
        HEADS=_HEADS, HALF=power_of_two(width // 2), num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
