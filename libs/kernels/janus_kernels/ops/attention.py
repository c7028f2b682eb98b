"""Rotary embedding and attention over a paged KV cache."""

from __future__ import annotations

import torch

from janus_kernels.native import NATIVE
from janus_kernels.ops.dense import DTYPE_CODES, fp32


def apply_rotary(
    x_THh: torch.Tensor, cos_Ph: torch.Tensor, sin_Ph: torch.Tensor, positions_T: torch.Tensor
) -> torch.Tensor:
    """Rotate halves of each head: fp32 [T, H, h]; tables fp32 [positions, h/2]; positions int64 [T]."""
    cos, sin = cos_Ph[positions_T][:, None], sin_Ph[positions_T][:, None]
    first, second = x_THh.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of this step's queries over each sequence's cached keys and values.

    Args:
        query: fp32 [T, H, h], the tokens of one sequence together, the last ones of its context.
        keys, values: [num_blocks, block_size, Hkv, h], this step's tokens already in them.
        query_starts: int32 [B+1]: sequence i has the queries query_starts[i] .. query_starts[i+1].
        context_lens: int32 [B], this step's tokens included.
        block_tables: int32 [B, max_blocks].
        window: attend to the last ``window`` positions only.

    Returns:
        fp32 [T, H, h].
    """
    tensors = (keys, values, query_starts, context_lens, block_tables)
    if NATIVE is None or keys.dtype not in DTYPE_CODES or not all(t.is_contiguous() for t in tensors):
        return reference_attention(
            query, keys, values, query_starts=query_starts, context_lens=context_lens, block_tables=block_tables,
            scale=scale, window=window,
        )  # fmt: skip
    for name, table in (
        ("query_starts", query_starts),
        ("context_lens", context_lens),
        ("block_tables", block_tables),
    ):
        if table.dtype != torch.int32:
            raise ValueError(f"paged_attention: {name} is {table.dtype}; expected torch.int32")
    query = fp32(query)
    out = torch.empty_like(query)
    sequences = context_lens.shape[0]
    if sequences:
        NATIVE.attention(
            query.data_ptr(), keys.data_ptr(), values.data_ptr(), DTYPE_CODES[keys.dtype], query_starts.data_ptr(),
            context_lens.data_ptr(), block_tables.data_ptr(), out.data_ptr(), sequences, query.shape[1],
            keys.shape[2], query.shape[2], keys.shape[1], block_tables.shape[1], window or 0, scale,
            int(context_lens.max()),
        )  # fmt: skip
    return out


def reference_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """:func:`paged_attention` in plain torch."""
    out = torch.empty_like(query)
    size = keys.shape[1]
    groups = query.shape[1] // keys.shape[2]
    starts = query_starts.tolist()
    for i, length in enumerate(context_lens.tolist()):
        first, last = starts[i], starts[i + 1]
        if first == last:
            continue
        blocks = block_tables[i, : -(-length // size)].long()
        k = keys[blocks].flatten(0, 1)[:length].float().repeat_interleave(groups, 1).transpose(0, 1)
        v = values[blocks].flatten(0, 1)[:length].float().repeat_interleave(groups, 1).transpose(0, 1)
        q = query[first:last].transpose(0, 1)
        scores = q @ k.transpose(1, 2) * scale
        count = last - first
        if count > 1 or window is not None:
            at = torch.arange(length - count, length)[:, None]
            seen = torch.arange(length)[None]
            mask = seen <= at
            if window is not None:
                mask &= seen > at - window
            scores = scores.masked_fill(~mask, float("-inf"))
        out[first:last] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out
