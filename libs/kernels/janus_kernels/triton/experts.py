"""Routed experts: pairs grouped by expert, SwiGLU, and a combination that does not depend on the assignment.

Pairs are sorted by expert and cut into tiles of sixteen; a tile reads one expert's weights, found through a table of
addresses, so that weights stay where they were loaded. Each pair's output is a function of its token and expert
alone. As on the CPU (docs/decisions/0002) a weighted output is a float64 product, rounded to a multiple of 2^-34 and
added in float64, exactly: no atomics, and the same bits over any split of experts over instances.

:func:`expert_partial` and :func:`combine` are capturable in a CUDA graph: sizes come from T, k and the number of
experts, tiles that are not needed end at once. :func:`expert_ffn` adds one host sync, for the numbers it returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from janus_kernels.ops.types import GRID, Activation, ExpertMapping, ExpertSet, ExpertStats, ExpertWeights
from janus_kernels.triton.tiles import ROWS, launch, power_of_two, rows_by_rows, silu

_COLUMNS = 32
_INNER = 128
_FLAT = 1024
_GRID = tl.constexpr(GRID)
_KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedExperts:
    """Experts of one layer on one device as the kernels find them."""

    addresses: torch.Tensor
    """int64 [n, 6]: gate, up, down and their biases (0: none) of the n experts."""
    place_of: torch.Tensor
    """int64 [largest id + 1]: an expert's row of ``addresses``; n where there is none."""
    dtype: torch.dtype
    aligned: bool
    """Every address is a multiple of 16."""
    hidden: int
    inner: int
    held: tuple[torch.Tensor, ...]
    """What the addresses point to."""


def group_experts(experts: ExpertMapping, device: torch.device) -> GroupedExperts:
    """Prepare experts, at least one; not capturable. Copies only what is not contiguous or of another dtype.

    Raises ValueError for weights on another device or of another shape than the first expert's.
    """
    weights = list(experts.values())
    dtypes = {part.dtype for e in weights for part in (e.gate, e.up, e.down)}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= _KINDS.keys() else torch.float32
    inner, hidden = weights[0].gate.shape
    addresses: list[list[int]] = []
    held: list[torch.Tensor] = []
    for number, e in experts.items():
        _check(number, e, inner, hidden, device)
        parts = [part.to(dtype).contiguous() for part in (e.gate, e.up, e.down)]
        biases = (e.gate_bias, e.up_bias, e.down_bias)
        held += parts + [bias for bias in biases if bias is not None]
        addresses.append([0 if part is None else part.data_ptr() for part in (*parts, *biases)])
    place_of = torch.full((max(experts) + 1,), len(weights), dtype=torch.int64, device="cpu")
    place_of[list(experts)] = torch.arange(len(weights), device="cpu")
    return GroupedExperts(
        addresses=torch.tensor(addresses, dtype=torch.int64, device=device), place_of=place_of.to(device), dtype=dtype,
        aligned=all(address % 16 == 0 for row in addresses for address in row), hidden=hidden, inner=inner,
        held=tuple(held),
    )  # fmt: skip


def _check(number: int, e: ExpertWeights, inner: int, hidden: int, device: torch.device) -> None:
    shapes = tuple(e.gate.shape), tuple(e.up.shape), tuple(e.down.shape)
    if shapes != ((inner, hidden), (inner, hidden), (hidden, inner)):
        raise ValueError(f"expert {number} has the shapes {shapes}; its peers' gate is {(inner, hidden)}")
    for part in (e.gate, e.up, e.down, e.gate_bias, e.up_bias, e.down_bias):
        if part is not None and part.device != device:
            raise ValueError(f"expert {number} is on {part.device}; expected {device}, where the tokens are")


@triton.jit
def _address(addresses_ptr, expert, PART: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(addresses_ptr + expert * 6 + PART).to(tl.pointer_type(KIND))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _add_bias(acc, addresses_ptr, expert, column, there, PART: tl.constexpr):
    address = tl.load(addresses_ptr + expert * 6 + PART)
    given = there & (address != 0)
    return acc + tl.load(address.to(tl.pointer_type(tl.float32)) + column, mask=given, other=0.0)[None, :]


@triton.jit
def _place(tile_experts_ptr, tile_ends_ptr, bounds_ptr, experts, M: tl.constexpr):
    """A tile's expert, its rows among the sorted pairs, and which of them are its own."""
    tile = tl.program_id(1)
    expert = tl.load(tile_experts_ptr + tile)
    begin = tl.load(bounds_ptr + expert, mask=expert < experts, other=0)
    end = tl.load(bounds_ptr + expert + 1, mask=expert < experts, other=0)
    last_tile = tl.load(tile_ends_ptr + expert, mask=expert < experts, other=0)
    tiles = (end - begin + M - 1) // M
    row = begin + (tile - (last_tile - tiles)) * M + tl.arange(0, M)
    return expert, row, row < end


@triton.jit
def _inner(
    x_ptr, order_ptr, addresses_ptr, tile_experts_ptr, tile_ends_ptr, bounds_ptr, h_ptr,
    experts, topk, hidden, inner, alpha, limit,
    CLAMPED: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    expert, row, real = _place(tile_experts_ptr, tile_ends_ptr, bounds_ptr, experts, M)
    if expert >= experts:
        return
    token = tl.load(order_ptr + row, mask=real, other=0) // topk
    x = x_ptr + token.to(tl.int64) * hidden
    n = tl.program_id(0) * N + tl.arange(0, N)
    there = n < inner
    at = n.to(tl.int64) * hidden
    nothing = tl.zeros([M, N], tl.float32)
    gate = rows_by_rows(
        x, real, _address(addresses_ptr, expert, 0, KIND, ALIGNED) + at, there, 1, hidden, nothing, K
    )
    up = rows_by_rows(
        x, real, _address(addresses_ptr, expert, 1, KIND, ALIGNED) + at, there, 1, hidden, nothing, K
    )
    gate = _add_bias(gate, addresses_ptr, expert, n, there, 3)
    up = _add_bias(up, addresses_ptr, expert, n, there, 4)
    if CLAMPED:  # by comparison: what is not a number stays so
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        h = (up + 1.0) * (gate / (1.0 + tl.exp(-alpha * gate)))
    else:
        h = silu(gate) * up
    tl.store(h_ptr + row[:, None].to(tl.int64) * inner + n[None, :], h, mask=real[:, None] & there[None, :])


@triton.jit
def _outer(
    h_ptr, order_ptr, addresses_ptr, tile_experts_ptr, tile_ends_ptr, bounds_ptr, y_ptr, experts, hidden, inner,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    expert, row, real = _place(tile_experts_ptr, tile_ends_ptr, bounds_ptr, experts, M)
    if expert >= experts:
        return
    pair = tl.load(order_ptr + row, mask=real, other=0)
    n = tl.program_id(0) * N + tl.arange(0, N)
    there = n < hidden
    down = _address(addresses_ptr, expert, 2, KIND, ALIGNED) + n.to(tl.int64) * inner
    h = h_ptr + row.to(tl.int64) * inner
    y = rows_by_rows(h, real, down, there, 1, inner, tl.zeros([M, N], tl.float32), K)
    y = _add_bias(y, addresses_ptr, expert, n, there, 5)
    tl.store(y_ptr + pair[:, None].to(tl.int64) * hidden + n[None, :], y, mask=real[:, None] & there[None, :])


@triton.jit
def _weigh(y_ptr, places_ptr, weights_ptr, out_ptr, experts, hidden, TOPK: tl.constexpr, N: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros([N], tl.float64)
    for i in range(TOPK):
        pair = token * TOPK + i
        mine = tl.load(places_ptr + pair) < experts
        y = tl.load(y_ptr + pair * hidden + n, mask=(n < hidden) & mine, other=0.0).to(tl.float64)
        product = y * tl.load(weights_ptr + pair)
        total += tl.where(mine, (product + _GRID) - _GRID, 0.0)
    tl.store(out_ptr + token * hidden + n, total, mask=n < hidden)


def expert_partial(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    mine: torch.Tensor,
    experts: GroupedExperts,
    activation: Activation,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`janus_kernels.ops.expert_ffn` without a host sync; pairs whose expert is not there are left out.

    Returns int64 [3] on the device: distinct experts, pairs computed, pairs left out.
    """
    (tokens, topk), (count, hidden, inner) = (
        ids.shape,
        (len(experts.addresses), experts.hidden, experts.inner),
    )
    pairs = tokens * topk
    known = len(experts.place_of)
    places = experts.place_of[ids.clamp(0, known - 1).long()]
    places = torch.where(mine & (ids >= 0) & (ids < known), places, count).flatten().to(torch.int32)
    ordered, order = torch.sort(places, stable=True)
    every = torch.arange(count + 1, dtype=torch.int32, device=x.device)
    bounds = torch.searchsorted(ordered, every, out_int32=True)
    counts = bounds.diff()
    tile_ends = (counts + (ROWS - 1)).div(ROWS, rounding_mode="floor").cumsum(0, dtype=torch.int32)
    tiles = min(pairs, pairs // ROWS + count)
    number = torch.arange(tiles, dtype=torch.int32, device=x.device)
    tile_experts = torch.searchsorted(tile_ends, number, right=True, out_int32=True)
    order = order.to(torch.int32)
    h, y = x.new_empty(pairs, inner), x.new_empty(pairs, hidden)
    constants = {"KIND": _KINDS[experts.dtype], "ALIGNED": experts.aligned, "M": ROWS, "N": _COLUMNS, "K": _INNER,
                 "num_warps": 4}  # fmt: skip
    launch(
        _inner, (triton.cdiv(inner, _COLUMNS), tiles), x, order, experts.addresses, tile_experts, tile_ends, bounds, h,
        count, topk, hidden, inner, activation.alpha, activation.limit, CLAMPED=activation.name == "clamped_swiglu",
        **constants,
    )  # fmt: skip
    launch(
        _outer, (triton.cdiv(hidden, _COLUMNS), tiles), h, order, experts.addresses, tile_experts, tile_ends, bounds, y,
        count, hidden, inner, **constants,
    )  # fmt: skip
    block = min(_FLAT, power_of_two(hidden))
    launch(
        _weigh, (triton.cdiv(hidden, block), tokens), y, places, weights, out, count, hidden, TOPK=topk, N=block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return torch.stack(((counts > 0).sum(), bounds[-1], mine.sum() - bounds[-1]))


def expert_ffn(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    mine: torch.Tensor,
    experts: ExpertMapping,
    activation: Activation,
    out: torch.Tensor,
) -> ExpertStats:
    """See :func:`janus_kernels.ops.expert_ffn`. One host sync, at the end: not capturable."""
    if experts and ids.numel():
        grouped = experts.grouped if isinstance(experts, ExpertSet) else None
        if grouped is None or grouped.addresses.device != x.device:
            grouped = group_experts(experts, x.device)
            if isinstance(experts, ExpertSet):
                experts.grouped = grouped
        calls, pairs, missing = expert_partial(x, ids, weights, mine, grouped, activation, out).tolist()
    else:
        out.zero_()
        calls, pairs, missing = 0, 0, int(mine.sum())
    if missing:
        raise KeyError(min(set(ids[mine].tolist()) - set(experts)))
    return ExpertStats(calls, pairs)


@triton.jit
def _add(a_ptr, b_ptr, c_ptr, d_ptr, out_ptr, count, PARTS: tl.constexpr, N: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    there = n < count
    total = tl.load(a_ptr + n, mask=there, other=0.0)
    if PARTS > 1:
        total += tl.load(b_ptr + n, mask=there, other=0.0)
    if PARTS > 2:
        total += tl.load(c_ptr + n, mask=there, other=0.0)
    if PARTS > 3:
        total += tl.load(d_ptr + n, mask=there, other=0.0)
    tl.store(out_ptr + n, total.to(out_ptr.dtype.element_ty), mask=there)


def combine(partials: list[torch.Tensor], out: torch.Tensor) -> None:
    """See :func:`janus_kernels.ops.combine`: four partial sums per kernel, from the first to the last."""
    count = out.numel()
    sums = torch.empty_like(partials[0]) if len(partials) > 4 else out
    while True:
        some, partials = partials[:4], partials[4:]
        target = sums if partials else out
        padded = [*some, *[some[0]] * (4 - len(some))]
        launch(
            _add, (triton.cdiv(count, _FLAT),), *padded, target, count, PARTS=len(some), N=_FLAT, num_warps=4
        )
        if not partials:
            return
        partials = [sums, *partials]
