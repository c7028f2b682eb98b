"""Qwen2-MoE (Alibaba; Qwen1.5-MoE too): a gated shared expert beside the routed ones, biases on q, k and v."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family, TensorNames
from janus_models.families.common import layer_windows, norm_topk_prob, sparse_step
from janus_models.specs import SharedSpec


def _shared(fields: Fields) -> SharedSpec:
    return SharedSpec(
        hidden=fields.whole("shared_expert_intermediate_size", default=5632, at_least=1), gated=True
    )


def _biases(fields: Fields) -> tuple[str, ...]:
    return ("q", "k", "v") if fields.flag("qkv_bias", default=True) else ()


def _windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", default=False):
        return (None,) * num_layers
    # As transformers fills layer_types in: every other layer, up to max_window_layers.
    most = fields.whole("max_window_layers", default=28)
    slides = [layer % 2 == 0 and layer < most for layer in range(num_layers)]
    return layer_windows(fields, num_layers, fields.whole("sliding_window", default=4096, at_least=1), slides)


QWEN2_MOE = Family(
    model_type="qwen2_moe",
    tensors=TensorNames(shared="model.layers.{layer}.mlp.shared_expert.{part}_proj.weight"),
    biases=_biases,
    router=norm_topk_prob,
    shared=_shared,
    moe_layers=sparse_step,
    windows=_windows,
)
