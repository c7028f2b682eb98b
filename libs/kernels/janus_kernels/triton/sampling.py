"""Sampling: what janus_kernels.ops.sample draws, for a batch of sequences and without leaving the device."""

from __future__ import annotations

import torch
import triton.language as tl
from triton import jit

from janus_kernels.triton.tiles import launch

_BLOCK = 1024


@jit
def _uniform(seed, index):
    """A number in [0, 1) from Philox 4x64, ten rounds: that of csrc/philox.h and of numpy."""
    c0 = index + 1
    c1 = (c0 == 0).to(tl.uint64)
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = seed
    k1 = seed * 0
    m0 = tl.full([1], 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full([1], 0xCA5A826395121157, tl.uint64)
    w0 = tl.full([1], 0x9E3779B97F4A7C15, tl.uint64)
    w1 = tl.full([1], 0xBB67AE8584CAA73B, tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(m0, c0)
        high1 = tl.umulhi(m1, c2)
        n0 = high1 ^ c1 ^ k0
        n2 = high0 ^ c3 ^ k1
        c1 = m1 * c2
        c3 = m0 * c0
        c0 = n0
        c2 = n2
        k0 += w0
        k1 += w1
    return (c0 >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)


@jit
def _draw(
    weights_ptr, sorted_ptr, order_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, index_ptr, out_ptr, vocabulary,
    N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    some = (top_k > 0) & (top_k < vocabulary)
    limited = some | (top_p < 1.0) | (min_p > 0.0)
    limit = tl.where(some, top_k, vocabulary)
    n = tl.arange(0, N)
    # Cumulative weights are those of the kept tokens, from the likeliest down, or of all, by id.
    values_ptr = tl.where(limited, sorted_ptr.to(tl.uint64), weights_ptr.to(tl.uint64)).to(weights_ptr.dtype)
    values_ptr += row * vocabulary
    nothing = tl.sum(tl.zeros([N], tl.float64), axis=0)
    whole = nothing
    for base in range(0, limit, N):
        w = tl.load(values_ptr + base + n, mask=base + n < limit, other=0.0).to(tl.float64)
        whole += tl.sum(w, axis=0)
    enough = tl.where(top_p < 1.0, top_p * whole, float("inf"))
    kept = limit * 0
    end = nothing
    carry = nothing
    for base in range(0, limit, N):
        w = tl.load(values_ptr + base + n, mask=base + n < limit, other=0.0).to(tl.float64)
        sums = carry + tl.cumsum(w, axis=0)
        keep = (base + n < limit) & (((w >= min_p) & (sums - w < enough)) | (base + n == 0))
        kept += tl.sum(keep.to(tl.int32), axis=0)
        end = tl.maximum(end, tl.max(tl.where(keep, sums, 0.0), axis=0))
        carry += tl.sum(w, axis=0)
    mark = (
        tl.max(
            _uniform(tl.load(seed_ptr + row).to(tl.uint64), tl.load(index_ptr + row).to(tl.uint64)), axis=0
        )
        * end
    )
    place = kept * 0
    last = kept * 0
    carry = nothing
    for base in range(0, kept, N):
        there = base + n < kept
        w = tl.load(values_ptr + base + n, mask=there, other=0.0).to(tl.float64)
        sums = carry + tl.cumsum(w, axis=0)
        place += tl.sum((there & (sums <= mark)).to(tl.int32), axis=0)
        last = tl.maximum(last, tl.max(tl.where(w > 0.0, base + n, 0), axis=0))
        carry += tl.sum(w, axis=0)
    # The draw may round up to the sum itself: then the last token that can be drawn.
    place = tl.minimum(place, last)
    token = place.to(tl.int64)
    if limited:
        token = tl.load(order_ptr + row * vocabulary + place)
    tl.store(out_ptr + row, token)


def sample_rows(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    indexes: torch.Tensor,
) -> torch.Tensor:
    """A token id for each row: int64 [B]. A row's depends on that row's arguments alone.

    Args:
        logits: fp32 [B, V]; -inf forbids a token.
        temperature: fp32 [B]; at 0 the likeliest token, the lowest id among equals.
        top_k: int32 [B]; 0 keeps all.
        top_p, min_p: fp64 [B], as :func:`janus_kernels.ops.sample` takes them.
        seeds, indexes: int64 [B], the bits of u64.

    Capturable in a CUDA graph; sorts every row, limited or not.
    """
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature)[:, None]
    weights = ((logits - logits.amax(-1, keepdim=True)) / divisor).exp()
    # A greedy row is sorted by its logits: two of them may have one weight.
    _, order = torch.sort(torch.where(greedy[:, None], logits, weights), dim=-1, descending=True, stable=True)
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    launch(
        _draw, (len(logits),), weights, weights.gather(1, order), order, torch.where(greedy, 1, top_k), top_p, min_p,
        seeds, indexes, out, logits.shape[1], N=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def sample(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, index: int
) -> int:
    """See :func:`janus_kernels.ops.sample`: one row, and a host sync to say which token."""

    def one(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([value], dtype=dtype, device=logits.device)

    words = torch.tensor(
        [word - (1 << 64) if word >> 63 else word for word in (seed, index)], device=logits.device
    )
    tokens = sample_rows(
        logits[None], one(temperature, torch.float32), one(min(top_k, logits.shape[0]), torch.int32),
        one(top_p, torch.float64), one(min_p, torch.float64), words[:1], words[1:],
    )  # fmt: skip
    return int(tokens)
