"""Qwen3-MoE (Alibaba): norms on query and key heads, some layers may be dense."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family
from janus_models.families.common import attention_bias, norm_topk_prob, sparse_step


def _windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    slides = fields.flag("use_sliding_window", default=False)
    return (fields.whole("sliding_window", default=4096, at_least=1) if slides else None,) * num_layers


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    qk_norm="head",
    biases=attention_bias,
    router=norm_topk_prob,
    moe_layers=sparse_step,
    windows=_windows,
)
