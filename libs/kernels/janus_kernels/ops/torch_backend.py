"""The ops in plain torch: where the compiled ones are absent, and what they are compared with.

A GEMM's rounding depends on its shape, so every product here has the same: sixteen rows at a time where that
is found to give each row the same bits (even shapes), else one; and attention one query at a time. Elementwise
functions round differently at the end of a tensor than inside it, so each row is one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from janus_kernels.ops.quantize import dequantize
from janus_kernels.ops.table import OpTable
from janus_kernels.ops.types import (
    GRID,
    Activation,
    ExpertMapping,
    ExpertStats,
    ExpertWeights,
    RoutingSpec,
)

_ROWS = 16


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See :class:`OpTable`."""
    tokens, weight = x.shape[0], weight.float()
    if tokens == 0:
        return x.new_empty(0, weight.shape[0])
    # A copy each: an address that is not aligned alike changes the rounding too.
    if weight.shape[0] % _ROWS or weight.shape[1] % _ROWS:
        return torch.cat([functional.linear(row.clone(), weight, bias) for row in x.split(1)])
    padded = functional.pad(x, (0, 0, 0, -tokens % _ROWS))
    return torch.cat([functional.linear(rows.clone(), weight, bias) for rows in padded.split(_ROWS)])[:tokens]


def quantized_linear(
    x: torch.Tensor, data: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """See :class:`OpTable`."""
    return linear(x, dequantize(data, scale), bias)


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """See :class:`OpTable`."""
    return linear(_each_row(functional.silu, linear(x, gate, None)) * linear(x, up, None), down, None)


def _each_row(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([function(row.clone()) for row in x.split(1)]) if len(x) else x


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See :class:`OpTable`."""
    return weight.float() * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """See :class:`OpTable`."""
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


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
    """See :class:`OpTable`."""
    heads, kv_heads, size = query.shape[1], keys.shape[2], keys.shape[1]
    out = query.new_empty(query.shape[0], heads, values.shape[3])
    starts = query_starts.tolist()
    for i, length in enumerate(context_lens.tolist()):
        first, last = starts[i], starts[i + 1]
        if first == last:
            continue
        blocks = block_tables[i, : -(-length // size)].long()
        k_JKh = keys[blocks].flatten(0, 1)[:length].float()
        v_JKv = values[blocks].flatten(0, 1)[:length].float()
        for t in range(first, last):
            end = length - (last - t) + 1
            begin = max(0, end - window) if window else 0
            q_KGh = query[t].unflatten(0, (kv_heads, heads // kv_heads))
            k_KhJ = k_JKh[begin:end].permute(1, 2, 0).contiguous()
            v_KJv = v_JKv[begin:end].transpose(0, 1).contiguous()
            scores_KGJ = q_KGh @ k_KhJ * scale
            if sinks is None:
                weights_KGJ = scores_KGJ.softmax(-1)
            else:
                sinks_KG1 = sinks.view(kv_heads, -1, 1)
                weights_KGJ = torch.cat((scores_KGJ, sinks_KG1), dim=-1).softmax(-1)[..., :-1]
            out[t] = (weights_KGJ @ v_KJv).flatten(0, 1)
    return out


def route(
    logits: torch.Tensor, spec: RoutingSpec, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :class:`OpTable`."""
    least = torch.finfo(torch.float32).min
    scores = _each_row(torch.sigmoid if spec.scoring == "sigmoid" else partial(torch.softmax, dim=-1), logits)
    ranks = (scores if bias is None else scores + bias).nan_to_num(least)
    if spec.groups > 1:
        groups = ranks.unflatten(-1, (spec.groups, -1))
        best = groups.amax(-1) if spec.group_score == "max" else groups.topk(2, dim=-1).values.sum(-1)
        kept = torch.sort(best, dim=-1, descending=True, stable=True).indices[:, : spec.groups_kept]
        out = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
        ranks = groups.masked_fill(out[..., None], least).flatten(1)
    ids = torch.sort(ranks, dim=-1, descending=True, stable=True).indices[:, : spec.top_k]
    weights = scores.gather(1, ids).double()
    if spec.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids.to(torch.int32), weights * spec.scale


def expert(x: torch.Tensor, e: ExpertWeights, activation: Activation) -> torch.Tensor:
    """One expert's output: fp32 [T, d] -> fp32 [T, d]."""
    weights = (e.gate, e.up, e.down)
    if e.scales is not None:
        weights = tuple(dequantize(*parts) for parts in zip(weights, e.scales, strict=True))  # type: ignore[assignment]
    gate, up = linear(x, weights[0], e.gate_bias), linear(x, weights[1], e.up_bias)
    if activation.name == "swiglu":
        inner = _each_row(functional.silu, gate) * up
    else:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        inner = (up + 1) * (gate * _each_row(torch.sigmoid, activation.alpha * gate))
    return linear(inner, weights[2], e.down_bias)


def expert_ffn(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    mine: torch.Tensor,
    experts: ExpertMapping,
    activation: Activation,
    out: torch.Tensor,
) -> ExpertStats:
    """See :func:`janus_kernels.ops.expert_ffn`."""
    out.zero_()
    active = torch.unique(ids[mine]).tolist()
    pairs = 0
    for number in active:
        rows, columns = torch.where((ids == number) & mine)
        y = expert(x[rows], experts[number], activation).double() * weights[rows, columns][:, None]
        out.index_add_(0, rows, y.add_(GRID).sub_(GRID))
        pairs += rows.shape[0]
    return ExpertStats(len(active), pairs)


def combine(partials: list[torch.Tensor], out: torch.Tensor) -> None:
    """See :func:`janus_kernels.ops.combine`."""
    total = partials[0].clone()
    for other in partials[1:]:
        total += other
    out.copy_(total)


def sample(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, index: int
) -> int:
    """See :func:`janus_kernels.ops.sample`."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=index)).random()
    weights = ((logits - logits.max()) / temperature).exp().double()
    order = torch.arange(weights.shape[0])
    limited = 0 < top_k < weights.shape[0]
    if limited or top_p < 1.0 or min_p > 0.0:
        weights, order = torch.sort(weights, descending=True, stable=True)
        if limited:
            weights, order = weights[:top_k], order[:top_k]
        keep = weights >= min_p
        if top_p < 1.0:
            keep &= weights.cumsum(0) - weights < top_p * weights.sum()
        keep[0] = True
        weights, order = weights[keep], order[keep]
    cumulative = weights.cumsum(0)
    place = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    # The draw may round up to the sum itself: then the last token that can be drawn.
    return int(order[min(place, int(torch.nonzero(weights)[-1]))])


TABLE = OpTable(
    name="torch", linear=linear, quantized_linear=quantized_linear,
    swiglu=swiglu, rms_norm=rms_norm, rotary=rotary, attention=attention, route=route,
    expert_ffn=expert_ffn, combine=combine, sample=sample,
)  # fmt: skip
