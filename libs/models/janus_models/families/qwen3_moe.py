"""Qwen3-MoE (Alibaba): norms on query and key heads, some layers may be dense."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family


def _moe_layers(fields: Fields, num_layers: int) -> tuple[int, ...]:
    dense = fields.ids("mlp_only_layers")
    step = fields.whole("decoder_sparse_step", default=1, at_least=1)
    return tuple(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0)


def _window(fields: Fields) -> int | None:
    if not fields.flag("use_sliding_window", default=False):
        return None
    return fields.whole("sliding_window", default=4096, at_least=1)


def _renormalize(fields: Fields) -> bool:
    return fields.flag("norm_topk_prob", default=False)


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    qk_norm=True,
    attention_bias=True,
    renormalize=_renormalize,
    moe_layers=_moe_layers,
    sliding_window=_window,
)
