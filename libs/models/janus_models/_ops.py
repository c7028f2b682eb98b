"""Plain torch stand-ins with the names and signatures of janus_kernels.ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    top_k: int
    scoring: str = "softmax"
    renormalize: bool = True


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def router_logits(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w)


def route(logits: torch.Tensor, spec: RoutingSpec, bias: torch.Tensor | None = None):
    scores = logits.softmax(-1)
    order = torch.sort(scores, dim=-1, descending=True, stable=True)
    ids = order.indices[:, : spec.top_k]
    weights = order.values[:, : spec.top_k]
    if spec.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids.to(torch.int32), weights


def linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, w.float(), None if bias is None else bias.float())


def rms_norm(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    return w.float() * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def swiglu_ffn(x, gate, up, down):
    return linear(F.silu(linear(x, gate)) * linear(x, up), down)


def apply_rotary(x_THh, cos_Ph, sin_Ph, positions_T):
    cos, sin = cos_Ph[positions_T][:, None], sin_Ph[positions_T][:, None]
    a, b = x_THh.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def paged_attention(query, keys, values, *, query_starts, context_lens, block_tables, scale, window=None):
    out = torch.empty_like(query)
    size = keys.shape[1]
    groups = query.shape[1] // keys.shape[2]
    for i, length in enumerate(context_lens.tolist()):
        first, last = int(query_starts[i]), int(query_starts[i + 1])
        if first == last:
            continue
        blocks = block_tables[i, : -(-length // size)].long()
        k = keys[blocks].flatten(0, 1)[:length].repeat_interleave(groups, 1).transpose(0, 1)
        v = values[blocks].flatten(0, 1)[:length].repeat_interleave(groups, 1).transpose(0, 1)
        q = query[first:last].transpose(0, 1)
        at = torch.arange(length - (last - first), length)[:, None]
        seen = torch.arange(length)[None]
        mask = seen <= at
        if window is not None:
            mask &= seen > at - window
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~mask, float("-inf"))
        out[first:last] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


def expert_ffn(x, ids, weights, mine, experts: Mapping[int, ExpertWeights], out):
    out.zero_()
    for e, w in experts.items():
        t, k = torch.where((ids == e) & mine)
        if t.numel():
            out.index_add_(0, t, swiglu_ffn(x[t], w.gate, w.up, w.down).double() * weights[t, k].double()[:, None])
