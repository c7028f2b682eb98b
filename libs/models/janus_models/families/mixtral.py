"""Mixtral (Mistral AI): every layer routed, scores renormalised, optional sliding window."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family, TensorNames

_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}"


def _windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    return (fields.optional_whole("sliding_window", at_least=1),) * num_layers


MIXTRAL = Family(
    model_type="mixtral",
    tensors=TensorNames(
        router="model.layers.{layer}.block_sparse_moe.gate.weight",
        expert_gate=_EXPERT + ".w1.weight",
        expert_up=_EXPERT + ".w3.weight",
        expert_down=_EXPERT + ".w2.weight",
    ),
    num_experts_keys=("num_local_experts", "num_experts"),
    expert_hidden_key="intermediate_size",
    windows=_windows,
    rope_theta=1_000_000.0,
    norm_eps=1e-5,
    max_positions=131_072,
)
