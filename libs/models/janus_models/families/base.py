"""What a family has to say. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from janus_models._fields import Fields


def every_layer(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """All layers are MoE layers."""
    del fields
    return tuple(range(num_layers))


def always(fields: Fields) -> bool:
    """A flag that no checkpoint of the family can turn off."""
    del fields
    return True


def no_window(fields: Fields) -> int | None:
    """Full attention."""
    del fields
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Templates of tensor names with ``{layer}`` and, for experts, ``{expert}``. Defaults are Llama's."""

    embedding: str = "model.embed_tokens.weight"
    """[V, d]"""
    final_norm: str = "model.norm.weight"
    """[d]"""
    head: str = "lm_head.weight"
    """[V, d]; absent when the embeddings are tied"""
    attention_norm: str = "model.layers.{layer}.input_layernorm.weight"
    """[d]"""
    moe_norm: str = "model.layers.{layer}.post_attention_layernorm.weight"
    """[d]: the norm before the FFN, dense or routed"""
    projection: str = "model.layers.{layer}.self_attn.{part}_proj"
    """part is q [H*hd, d], k and v [Hkv*hd, d], o [d, H*hd]; with .weight and, where configured, .bias"""
    query_norm: str = "model.layers.{layer}.self_attn.q_norm.weight"
    """[hd], over each head, only where Family.qk_norm"""
    key_norm: str = "model.layers.{layer}.self_attn.k_norm.weight"
    """[hd], likewise"""
    dense: str = "model.layers.{layer}.mlp.{part}_proj.weight"
    """part is gate and up [F, d], down [d, F]; layers without routed experts"""
    router: str = "model.layers.{layer}.mlp.gate.weight"
    """[E, d]"""
    expert_gate: str = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
    """[f, d]"""
    expert_up: str = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
    """[f, d]"""
    expert_down: str = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    """[d, f]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One ``model_type``. The functions read config.json through :class:`Fields` and raise its errors."""

    model_type: str
    """As config.json spells it."""
    tensors: TensorNames = field(default_factory=TensorNames)
    qk_norm: bool = False
    """RMS norm over each query and key head before the rotary embedding."""
    attention_bias: bool = False
    """Whether the family has the config field ``attention_bias``."""
    num_experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    """Config fields that may hold the number of routed experts, first present wins."""
    expert_hidden_key: str = "moe_intermediate_size"
    """Config field with an expert's inner width."""
    scoring: str = "softmax"
    """How router logits become scores."""
    renormalize: Callable[[Fields], bool] = always
    """Whether the chosen scores are divided by their sum."""
    moe_layers: Callable[[Fields, int], tuple[int, ...]] = every_layer
    """The decoder layers, of so many, that have routed experts."""
    sliding_window: Callable[[Fields], int | None] = no_window
    """Attention window in tokens, None for full attention."""
    rope_theta: float = 10_000.0
    """When config.json has none."""
    norm_eps: float = 1e-6
    """When config.json has none."""
    max_positions: int = 32_768
    """When config.json has none."""
