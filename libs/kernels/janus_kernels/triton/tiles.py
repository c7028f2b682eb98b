"""What the kernels share: products whose rows do not depend on each other, and how kernels are started.

A tile has a fixed shape and a fixed order over its inner dimension, chosen from the weights' shapes and dtypes
alone, never from the number of tokens; nothing is tuned at run time. Rows of a tile are independent, so a
token's bits do not depend on what is beside it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = bool(knobs.runtime.interpret)
_ONE_AT_A_TIME = threading.Lock()
"""The interpreter keeps the place in the grid in a variable of its own."""
ROWS = 16
"""Tokens per tile, the fewest that tensor cores take."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start ``kernel`` over ``grid`` on its first argument's device; nothing for an empty grid. No host sync."""
    if 0 in grid:
        return
    if _INTERPRETED:
        # Masked places overflow and divide by zero, on a GPU as here; numpy would warn of each.
        with _ONE_AT_A_TIME, np.errstate(all="ignore"):
            kernel[grid](*args, **options)
        return
    device = args[0].device
    if device.type != "cuda":
        raise ValueError(
            f"compiled Triton kernels take CUDA tensors, not {device}; TRITON_INTERPRET=1 interprets them instead"
        )
    with torch.cuda.device(device):
        kernel[grid](*args, **options)


def power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``count`` and ``least``: the size of a block."""
    return max(least, 1 << max(0, count - 1).bit_length())


@triton.jit
def _leading(x):
    """fp32 with all but the leading 8 bits of the significand cleared: exact in bfloat16."""
    cleared = (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(x == x, cleared, x)


@triton.jit
def _rest(x, leading):
    """x - leading, exact; nothing where x is infinite or not a number: the leading part says so already."""
    rest = x - leading
    return tl.where(rest == rest, rest, 0.0)


@triton.jit
def dot(x, w, acc):
    """acc + x w in fp32: x fp32 [M, K], w fp32, bfloat16 or float16 [K, N].

    With bfloat16 weights x is the exact sum of three bfloat16 tiles, so that tensor cores compute what fp32
    arithmetic would; otherwise the products are plain fp32, without tensor cores.
    """
    if w.dtype == tl.bfloat16:
        high = _leading(x)
        rest = _rest(x, high)
        middle = _leading(rest)
        acc = tl.dot(_rest(rest, middle).to(tl.bfloat16), w, acc)
        acc = tl.dot(middle.to(tl.bfloat16), w, acc)
        return tl.dot(high.to(tl.bfloat16), w, acc)
    return tl.dot(x, w.to(tl.float32), acc, input_precision="ieee")


@triton.jit
def rows_by_rows(x, row, w, column, w_in, inner, acc, K: tl.constexpr):
    """acc + x w^T over the inner dimension: [M] rows of x by [N] rows of w, pointers to their starts."""
    for start in range(0, inner, K):
        k = start + tl.arange(0, K)
        there = k < inner
        x_MK = tl.load(x[:, None] + k[None, :], mask=row[:, None] & there[None, :], other=0.0)
        w_KN = tl.load(w[None, :] + k[:, None] * w_in, mask=column[None, :] & there[:, None], other=0.0)
        acc = dot(x_MK, w_KN, acc)
    return acc


@triton.jit
def silu(x):
    """x / (1 + e^-x)."""
    return x / (1.0 + tl.exp(-x))
