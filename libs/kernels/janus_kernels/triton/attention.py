"""Attention over a paged KV cache: decode and prefill, grouped heads and latents (MLA), windows and sinks.

Two kernels, the same for every kind of batch, so that a query's bits are the same in any chunk, step and company:
``_attend`` computes a tile's partial softmax over one split of the positions, ``_merge`` adds the splits in order.
Splits and the blocks inside them lie at fixed positions of the context; a block that a row does not see leaves the
row as it was, to the bit. A tile's rows are the heads that share a KV head, of one token or of several.

Capturable in a CUDA graph: no sync; grids and work space come from the shapes of queries and block tables, and what
lies beyond a context ends at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from janus_kernels.triton.tiles import ROWS, dot, launch, power_of_two

_SPLIT = 256
"""Positions per split (Flash-Decoding's, at fixed places)."""
_WORKSPACE = 256 << 20
"""Bytes of partial sums at a time; tiles beyond it wait for the next pair of kernels."""


@triton.jit
def _tile_of(tile, starts_ptr, lens_ptr, sequences, TOKENS: tl.constexpr):
    """The tile's sequence, its first token, the token after the sequence's last, and its context.

    Tiles of sequence i begin at starts[i] // TOKENS + i: known without a count of each sequence's tiles.
    """
    low = tile * 0
    high = low + sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(starts_ptr + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle - 1
    start = tl.load(starts_ptr + low)
    first = start + (tile - start // TOKENS - low) * TOKENS
    return low, first, tl.load(starts_ptr + low + 1), tl.load(lens_ptr + low)


@triton.jit
def _seen(token, last, context, window, WINDOWED: tl.constexpr):
    """Positions [begin, end) that a token sees; ``last`` is the token after its sequence's last."""
    end = context - (last - token) + 1
    if WINDOWED:
        return tl.maximum(end - window, 0), end
    return end * 0, end


@triton.jit
def _attend(
    query_ptr, keys_ptr, values_ptr, starts_ptr, lens_ptr, tables_ptr, sums_ptr, tops_ptr, norms_ptr,
    first_tile, sequences, heads, width, value_width, table_width, scale, window,
    key_block, key_place, key_head, key_in, value_block, value_place, value_head, value_in,
    WINDOWED: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, SIZE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    sequence, first, last, context = _tile_of(
        first_tile + tl.program_id(0), starts_ptr, lens_ptr, sequences, TOKENS
    )
    if first >= last:
        return
    final = tl.minimum(first + TOKENS, last) - 1
    lowest, _ = _seen(first, last, context, window, WINDOWED)
    _, highest = _seen(final, last, context, window, WINDOWED)
    split = tl.program_id(2)
    low = tl.maximum(split * SPLIT, lowest // BLOCK * BLOCK)
    high = tl.minimum((split + 1) * SPLIT, highest)
    if low >= high:
        return

    per_head: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // per_head
    row = tl.arange(0, M)
    token = first + row // HEADS
    inside = tl.program_id(1) % per_head * HEADS + row % HEADS
    real = (token < last) & (row < TOKENS * HEADS) & (inside < GROUP)
    begin, end = _seen(token, last, context, window, WINDOWED)
    query = query_ptr + (token.to(tl.int64) * heads + kv_head * GROUP + inside) * width
    keys = keys_ptr + kv_head.to(tl.int64) * key_head
    values = values_ptr + kv_head.to(tl.int64) * value_head
    v = tl.arange(0, VALUES)

    top = tl.full([M], float("-inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, VALUES], tl.float32)
    for base in range(low, high, BLOCK):
        place = base + tl.arange(0, BLOCK)
        there = place < high
        block = tl.load(tables_ptr + sequence.to(tl.int64) * table_width + place // SIZE, mask=there, other=0)
        key = keys + block.to(tl.int64) * key_block + place % SIZE * key_place
        value = values + block.to(tl.int64) * value_block + place % SIZE * value_place
        scores = tl.zeros([M, BLOCK], tl.float32)
        for start in range(0, width, WIDTH):
            d = start + tl.arange(0, WIDTH)
            q_MD = tl.load(query[:, None] + d[None, :], mask=real[:, None] & (d < width)[None, :], other=0.0)
            k_mask = (d < width)[:, None] & there[None, :]
            k_DJ = tl.load(key[None, :] + d[:, None] * key_in, mask=k_mask, other=0.0)
            scores = dot(q_MD * scale, k_DJ, scores)
        visible = (place[None, :] >= begin[:, None]) & (place[None, :] < end[:, None]) & there[None, :]
        scores = tl.where(visible, scores, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, axis=1))
        level = tl.where(peak == float("-inf"), 0.0, peak)
        shares = tl.exp(scores - level[:, None])
        keep = tl.exp(top - level)
        v_mask = there[:, None] & (v < value_width)[None, :]
        v_JV = tl.load(value[:, None] + v[None, :] * value_in, mask=v_mask, other=0.0)
        sums = dot(shares, v_JV, sums * keep[:, None])
        norm = norm * keep + tl.sum(shares, axis=1)
        top = peak

    at = (
        (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + split
    ) * M
    tl.store(tops_ptr + at + row, top)
    tl.store(norms_ptr + at + row, norm)
    out = sums_ptr + (at + row)[:, None] * value_width + v[None, :]
    tl.store(out, sums, mask=(v < value_width)[None, :])


@triton.jit
def _merge(
    sums_ptr, tops_ptr, norms_ptr, sinks_ptr, starts_ptr, lens_ptr, out_ptr,
    first_tile, sequences, heads, value_width, splits, window,
    WINDOWED: tl.constexpr, SINKS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
    SPLIT: tl.constexpr, VALUES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    _, first, last, context = _tile_of(first_tile + tl.program_id(0), starts_ptr, lens_ptr, sequences, TOKENS)
    if first >= last:
        return
    lowest, _ = _seen(first, last, context, window, WINDOWED)
    _, highest = _seen(tl.minimum(first + TOKENS, last) - 1, last, context, window, WINDOWED)
    per_head: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    row = tl.arange(0, M)
    token = first + row // HEADS
    inside = tl.program_id(1) % per_head * HEADS + row % HEADS
    head = tl.program_id(1) // per_head * GROUP + inside
    real = (token < last) & (row < TOKENS * HEADS) & (inside < GROUP)
    v = tl.arange(0, VALUES)

    top = tl.full([M], float("-inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, VALUES], tl.float32)
    at = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * splits * M + row
    for split in range(lowest // SPLIT, (highest + SPLIT - 1) // SPLIT):
        here = at + split * M
        other = tl.load(tops_ptr + here)
        peak = tl.maximum(top, other)
        level = tl.where(peak == float("-inf"), 0.0, peak)
        keep = tl.exp(top - level)
        take = tl.exp(other - level)
        more = tl.load(
            sums_ptr + here[:, None] * value_width + v[None, :], mask=(v < value_width)[None, :], other=0.0
        )
        sums = sums * keep[:, None] + more * take[:, None]
        norm = norm * keep + tl.load(norms_ptr + here) * take
        top = peak
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=real, other=0.0)
        peak = tl.maximum(top, sink)
        keep = tl.exp(top - peak)
        sums = sums * keep[:, None]
        norm = norm * keep + tl.exp(sink - peak)
    out = out_ptr + (token.to(tl.int64) * heads + head)[:, None] * value_width + v[None, :]
    tl.store(out, sums / norm[:, None], mask=real[:, None] & (v < value_width)[None, :])


def attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """See :class:`OpTable`; keys and values of any strides."""
    (tokens, heads, width), sequences = query.shape, context_lens.shape[0]
    size, kv_heads, value_width = keys.shape[1], keys.shape[2], values.shape[3]
    out = query.new_empty(tokens, heads, value_width)
    splits = triton.cdiv(block_tables.shape[1] * size, _SPLIT)
    if not tokens or not splits:
        return out
    group = heads // kv_heads
    tile_heads = min(group, ROWS)
    tile_tokens = ROWS // tile_heads
    shape = {
        "WINDOWED": window > 0, "GROUP": group, "HEADS": tile_heads, "TOKENS": tile_tokens, "SPLIT": _SPLIT,
        "VALUES": power_of_two(value_width, 16), "M": ROWS, "num_warps": 4,
    }  # fmt: skip
    tiles, columns = tokens // tile_tokens + sequences, kv_heads * triton.cdiv(group, tile_heads)
    rows = columns * splits * ROWS
    wave = min(tiles, max(1, _WORKSPACE // (4 * rows * (value_width + 2))))
    sums, tops, norms = (query.new_empty(wave * rows * n) for n in (value_width, 1, 1))
    for first in range(0, tiles, wave):
        count = min(wave, tiles - first)
        launch(
            _attend, (count, columns, splits), query, keys, values, query_starts, context_lens, block_tables, sums,
            tops, norms, first, sequences, heads, width, value_width, block_tables.shape[1], scale, window,
            *keys.stride(), *values.stride(), SIZE=size, BLOCK=64 if value_width <= 256 else 32,
            WIDTH=min(128, power_of_two(width, 16)), **shape,
        )  # fmt: skip
        launch(
            _merge, (count, columns), sums, tops, norms, sums if sinks is None else sinks, query_starts,
            context_lens, out, first, sequences, heads, value_width, splits, window, SINKS=sinks is not None, **shape,
        )  # fmt: skip
    return out
