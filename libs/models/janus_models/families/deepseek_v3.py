"""DeepSeek-V3 and R1: as V2, but sigmoid scores, chosen with a learned correction that weights do not see.

The multi-token-prediction layer at the end of the published files is not used.
"""

from __future__ import annotations

from functools import partial

from janus_models._fields import Fields
from janus_models.families.base import Family, TensorNames
from janus_models.families.common import (
    deepseek_biases,
    deepseek_dense,
    deepseek_latent,
    deepseek_shared,
    only,
)
from janus_models.specs import LatentSpec, RouterSpec


def _router(fields: Fields) -> RouterSpec:
    only(fields, "scoring_func", "sigmoid")
    only(fields, "topk_method", "noaux_tc")
    groups = fields.whole("n_group", default=8, at_least=1)
    return RouterSpec(
        scoring="sigmoid",
        renormalize=fields.flag("norm_topk_prob", default=True),
        scale=fields.number("routed_scaling_factor", default=2.5),
        groups=groups,
        groups_kept=fields.whole("topk_group", default=4, at_least=1, at_most=groups),
        group_score="top2",
    )


def _latent(fields: Fields) -> LatentSpec:
    return deepseek_latent(fields, interleaved=fields.flag("rope_interleave", default=True))


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    tensors=TensorNames(correction_bias="model.layers.{layer}.mlp.gate.e_score_correction_bias"),
    num_experts_keys=("n_routed_experts",),
    latent=_latent,
    biases=deepseek_biases,
    router=_router,
    shared=partial(deepseek_shared, default=1),
    moe_layers=partial(deepseek_dense, default=3),
    max_positions=4096,
)
