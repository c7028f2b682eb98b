"""Rotary embedding and attention over a paged KV cache."""

from __future__ import annotations

import torch

from janus_kernels.ops.table import backend_of
from janus_kernels.ops.types import check, fp32


def apply_rotary(
    x_THh: torch.Tensor, cos_Ph: torch.Tensor, sin_Ph: torch.Tensor, positions_T: torch.Tensor
) -> torch.Tensor:
    """Rotate halves of each head: fp32 [T, H, h]; tables fp32 [positions, h / 2]; positions int64 [T]."""
    tokens, _, width = x_THh.shape
    check("apply_rotary", "cos", cos_Ph, torch.float32, cos_Ph.shape[0], width // 2)
    check("apply_rotary", "sin", sin_Ph, torch.float32, cos_Ph.shape[0], width // 2)
    check("apply_rotary", "positions", positions_T, torch.int64, tokens)
    return backend_of("apply_rotary", x_THh, cos_Ph, sin_Ph, positions_T).rotary(
        fp32(x_THh), cos_Ph, sin_Ph, positions_T
    )


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
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of this step's queries over each sequence's cached keys and values.

    Args:
        query: fp32 [T, H, h], the tokens of one sequence together, the last ones of its context.
        keys: [num_blocks, block_size, Hkv, h], float32, bfloat16 or float16, this step's tokens already in it.
        values: [num_blocks, block_size, Hkv, v], the same dtype. With MLA (absorbed) keys are the latents with
            their rotary part, Hkv is 1, and values may be the view ``keys[..., :v]``. Both may be views of any
            strides; those of :func:`new_pages` are read fastest.
        query_starts: int32 [B+1]: sequence i has the queries query_starts[i] .. query_starts[i+1].
        context_lens: int32 [B], this step's tokens included.
        block_tables: int32 [B, max_blocks].
        window: attend to the last ``window`` positions only.
        sinks: fp32 [H], one more logit in the softmax of each head, with no value (gpt_oss).

    Returns:
        fp32 [T, H, v].
    """
    sequences = context_lens.shape[0]
    check("paged_attention", "query_starts", query_starts, torch.int32, sequences + 1)
    check("paged_attention", "context_lens", context_lens, torch.int32, sequences)
    check("paged_attention", "block_tables", block_tables, torch.int32, sequences, block_tables.shape[-1])
    heads, kv_heads = query.shape[1], keys.shape[2]
    if keys.shape[:3] != values.shape[:3] or keys.shape[3] != query.shape[2] or heads % kv_heads:
        raise ValueError(
            f"paged_attention: query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}; "
            "expected [T, H, h], [blocks, size, Hkv, h], [blocks, size, Hkv, v] with H a multiple of Hkv"
        )
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: window = {window}; allowed: 1 and more, or None")
    if sinks is not None:
        check("paged_attention", "sinks", sinks, torch.float32, heads)
    table = backend_of(
        "paged_attention", query, keys, values, query_starts, context_lens, block_tables, sinks
    )
    return table.attention(
        fp32(query), keys, values, query_starts, context_lens, block_tables, scale, window or 0, sinks
    )
