"""OLMoE (Ai2): norms over the whole width of queries and keys, values clamped where configured."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family
from janus_models.families.common import attention_bias, norm_topk_prob


def _clip_qkv(fields: Fields) -> float | None:
    return None if fields.get("clip_qkv") is None else fields.number("clip_qkv", above=0.0)


OLMOE = Family(
    model_type="olmoe",
    qk_norm="row",
    expert_hidden_key="intermediate_size",
    biases=attention_bias,
    router=norm_topk_prob,
    clip_qkv=_clip_qkv,
    norm_eps=1e-5,
    max_positions=4096,
)
