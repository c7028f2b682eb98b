"""Routers: which experts a token goes to, with which weights."""

from __future__ import annotations

import torch

from janus_kernels.ops.dense import linear
from janus_kernels.ops.table import backend_of
from janus_kernels.ops.types import RoutingSpec, fp32

__all__ = ["RoutingSpec", "route", "router_logits"]


def router_logits(
    x_TD: torch.Tensor, weight_ED: torch.Tensor, bias_E: torch.Tensor | None = None
) -> torch.Tensor:
    """fp32 [T, E]; the bias is part of the logits (gpt_oss), unlike the one that :func:`route` takes."""
    return linear(x_TD, weight_ED, bias_E)


def route(
    logits_TE: torch.Tensor, spec: RoutingSpec, bias_E: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k expert ids int32 [T, k], best first, and their weights fp64 [T, k]; the lowest id wins ties.

    Scores are float32, as the model was trained; they are divided in float64, so that renormalised weights sum to
    one far below float32's rounding: in float32 the sum is off by an ulp now and then, which large outputs show.

    Softmax over all experts and renormalised is softmax over the chosen logits, as gpt_oss spells it.

    ``bias_E`` is added to the scores for choosing only (DeepSeek-V3's correction bias). With groups, experts
    outside the kept groups are never chosen. A score that is not a number is chosen last.
    """
    experts = logits_TE.shape[-1]
    if logits_TE.dim() != 2 or spec.top_k > experts:
        raise ValueError(
            f"route: logits {tuple(logits_TE.shape)}; expected [T, E] with E >= top_k = {spec.top_k}"
        )
    if experts % spec.groups or spec.top_k > experts // spec.groups * spec.groups_kept:
        raise ValueError(
            f"route: {experts} experts in {spec.groups} groups, {spec.groups_kept} kept; "
            f"they must divide evenly and hold top_k = {spec.top_k} experts"
        )
    if bias_E is not None and bias_E.shape != (experts,):
        raise ValueError(f"route: bias {tuple(bias_E.shape)}; expected [{experts}]")
    return backend_of("route", logits_TE, bias_E).route(
        fp32(logits_TE), spec, None if bias_E is None else fp32(bias_E)
    )
