"""Routers: which experts a token goes to, with which weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus_kernels.ops.dense import linear

_SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """How experts are chosen from router logits."""

    top_k: int
    """Experts per token."""
    scoring: str = "softmax"
    """``softmax`` over all experts, or ``sigmoid`` of each."""
    renormalize: bool = True
    """Divide the chosen scores by their sum."""
    scale: float = 1.0
    """Weights are multiplied by it."""

    def __post_init__(self) -> None:
        if self.scoring not in _SCORINGS:
            raise ValueError(f"scoring = {self.scoring!r}; allowed: {', '.join(_SCORINGS)}")


def router_logits(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
    """fp32 [T, E]."""
    return linear(x_TD, weight_ED)


def route(
    logits_TE: torch.Tensor, spec: RoutingSpec, bias_E: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k expert ids int32 [T, k], best first, and their weights fp64 [T, k]; the lowest id wins ties.

    Scores are float32, as the model was trained; they are divided in float64, so that renormalised weights sum to
    one far below float32's rounding: in float32 the sum is off by an ulp now and then, which large outputs show.

    ``bias_E`` is added to the scores for choosing only.
    """
    scores_TE = logits_TE.float()
    scores_TE = scores_TE.softmax(-1) if spec.scoring == "softmax" else scores_TE.sigmoid()
    ranked_TE = scores_TE if bias_E is None else scores_TE + bias_E
    ids_TK = torch.sort(ranked_TE, dim=-1, descending=True, stable=True).indices[:, : spec.top_k]
    weights_TK = scores_TE.gather(1, ids_TK).double()
    if spec.renormalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return ids_TK.to(torch.int32), weights_TK * spec.scale if spec.scale != 1.0 else weights_TK
