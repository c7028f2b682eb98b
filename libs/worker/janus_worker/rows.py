"""Hidden states in frames: fp32, or, asked for, rounded to bf16 (Flag.NARROW). Computing is in fp32 either way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
WIRE_DTYPES = ("fp32", "bf16")


def row_bytes(hidden: int, narrow: bool) -> int:
    """Of one token's hidden state."""
    return (2 if narrow else 4) * hidden


def rounded(x_TD: torch.Tensor) -> torch.Tensor:
    """fp32 values as a receiver of bf16 has them: to the nearest, ties to even."""
    return x_TD.to(torch.bfloat16).to(torch.float32)


def put(payload: Array, x_TD: torch.Tensor, narrow: bool) -> int:
    """Write hidden states fp32 [T, d] to a payload, uint8; their size in bytes."""
    size = row_bytes(x_TD.shape[1], narrow) * x_TD.shape[0]
    if narrow:
        target = torch.from_numpy(payload[:size].view(np.int16).reshape(x_TD.shape)).view(torch.bfloat16)
    else:
        # Views through numpy: they cost a tenth of torch's, and there are some for every layer and peer.
        target = torch.from_numpy(payload[:size].view(np.float32).reshape(x_TD.shape))
    target.copy_(x_TD)
    return size


def take(payload: Array, count: int, hidden: int, narrow: bool) -> Array:
    """Hidden states fp32 [count, d] at a payload's beginning, on its memory where they are fp32 there."""
    size = row_bytes(hidden, narrow) * count
    if not narrow:
        return payload[:size].view(np.float32).reshape(count, hidden)
    bits = payload[:size].view(np.uint16).reshape(count, hidden).astype(np.uint32)
    return np.left_shift(bits, 16, out=bits).view(np.float32)


def add_rows(sums_TD: Array, rows_R: Array, part_RD: Array) -> None:
    """``sums_TD[rows_R] += part_RD``, fp64; rows int64, none twice. Numpy takes three to four times as long."""
    torch.from_numpy(sums_TD).index_add_(0, torch.from_numpy(rows_R), torch.from_numpy(part_RD))
