"""Routers. One program per token; capturable in a CUDA graph: no sync, sizes from the logits' shape alone."""

from __future__ import annotations

import torch
import triton.language as tl
from triton import jit

from janus_kernels.ops.types import RoutingSpec
from janus_kernels.triton.tiles import launch, power_of_two

_LEAST = tl.constexpr(-3.4028234663852886e38)
"""Rank of what is not a number, and of experts outside the kept groups: chosen last."""


@jit
def _first(values, index, value, COUNT: tl.constexpr):
    """The lowest index at which ``values`` has ``value``; COUNT when none has."""
    return tl.min(tl.min(tl.where(values == value, index, COUNT), axis=1), axis=0)


@jit
def _largest(values):
    return tl.max(tl.max(values, axis=1), axis=0)


@jit
def _route(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr,
    EXPERTS: tl.constexpr, SIZE: tl.constexpr, TOPK: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
    SIGMOID: tl.constexpr, BIASED: tl.constexpr, TOP2: tl.constexpr, RENORMALIZE: tl.constexpr, SCALE: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, G)[:, None]
    member = tl.arange(0, S)[None, :]
    expert = group * SIZE + member
    there = (group < GROUPS) & (member < SIZE)
    logits = tl.load(logits_ptr + token * EXPERTS + expert, mask=there, other=float("-inf"))
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        scores = tl.exp(logits - _largest(logits))
        scores = scores / tl.sum(tl.sum(scores, axis=1), axis=0)
    ranks = scores
    if BIASED:
        ranks += tl.load(bias_ptr + expert, mask=there, other=0.0)
    ranks = tl.where(ranks > _LEAST, ranks, _LEAST)
    if GROUPS > 1:
        first = tl.max(tl.where(there, ranks, _LEAST), axis=1)
        best = first
        if TOP2:
            at = tl.min(tl.where((ranks == first[:, None]) & there, member, S), axis=1)
            best += tl.max(tl.where(there & (member != at[:, None]), ranks, _LEAST), axis=1)
        number = tl.arange(0, G)
        waiting = number < GROUPS
        for _ in range(KEPT):
            top = tl.max(tl.where(waiting, best, float("-inf")), axis=0)
            waiting = waiting & (number != tl.min(tl.where(waiting & (best == top), number, G), axis=0))
        ranks = tl.where(waiting[:, None], _LEAST, ranks)
    ranks = tl.where(there, ranks, float("-inf"))
    place = tl.arange(0, K)
    ids = tl.zeros([K], tl.int32)
    weights = tl.zeros([K], tl.float64)
    total = tl.sum(weights, axis=0)
    for i in range(TOPK):
        chosen = _first(ranks, expert, _largest(ranks), EXPERTS)
        score = tl.sum(tl.sum(tl.where(expert == chosen, scores, 0.0), axis=1), axis=0).to(tl.float64)
        ids = tl.where(place == i, chosen, ids)
        weights = tl.where(place == i, score, weights)
        total += score
        ranks = tl.where(expert == chosen, float("-inf"), ranks)
    if RENORMALIZE:
        weights = weights / total
    tl.store(ids_ptr + token * TOPK + place, ids, mask=place < TOPK)
    tl.store(weights_ptr + token * TOPK + place, weights * SCALE, mask=place < TOPK)


def route(
    logits: torch.Tensor, spec: RoutingSpec, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :class:`OpTable`."""
    tokens, experts = logits.shape
    ids = torch.empty(tokens, spec.top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, spec.top_k, dtype=torch.float64, device=logits.device)
    size = experts // spec.groups
    launch(
        _route, (tokens,), logits, logits if bias is None else bias, ids, weights, EXPERTS=experts, SIZE=size,
        TOPK=spec.top_k, GROUPS=spec.groups, KEPT=spec.groups_kept, SIGMOID=spec.scoring == "sigmoid",
        BIASED=bias is not None, TOP2=spec.group_score == "top2", RENORMALIZE=spec.renormalize,
        SCALE=float(spec.scale), G=power_of_two(spec.groups), S=power_of_two(size), K=power_of_two(spec.top_k),
        num_warps=4 if experts > 256 else 1,
    )  # fmt: skip
    return ids, weights
