"""DeepSeek-V2 and V2-Lite: latent attention, shared experts, first layers dense, experts chosen within groups."""

from __future__ import annotations

from functools import partial

from janus_models._fields import Fields
from janus_models.families.base import Family
from janus_models.families.common import (
    deepseek_biases,
    deepseek_dense,
    deepseek_latent,
    deepseek_shared,
    only,
)
from janus_models.specs import LatentSpec, RouterSpec, SharedSpec


def _router(fields: Fields) -> RouterSpec:
    only(fields, "scoring_func", "softmax")
    # norm_topk_prob is not read: transformers does not renormalise, and no published V2 checkpoint asks for it.
    scale = fields.number("routed_scaling_factor", default=1.0)
    method = fields.text("topk_method", default="greedy")
    if method == "greedy":
        return RouterSpec(renormalize=False, scale=scale)
    if method != "group_limited_greedy":
        raise fields.error("topk_method", method, "greedy, group_limited_greedy")
    groups = fields.whole("n_group", at_least=1)
    return RouterSpec(
        renormalize=False,
        scale=scale,
        groups=groups,
        groups_kept=fields.whole("topk_group", at_least=1, at_most=groups),
        group_score="max",
    )


def _shared(fields: Fields) -> SharedSpec | None:
    only(fields, "mlp_bias", False)
    return deepseek_shared(fields, default=2)


def _latent(fields: Fields) -> LatentSpec:
    return deepseek_latent(fields, interleaved=True)


DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    num_experts_keys=("n_routed_experts",),
    latent=_latent,
    biases=deepseek_biases,
    router=_router,
    shared=_shared,
    moe_layers=partial(deepseek_dense, default=0),
    max_positions=2048,
)
