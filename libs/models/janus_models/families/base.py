"""What a family has to say. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from janus_models._fields import Fields
from janus_models.specs import ActivationSpec, LatentSpec, RouterSpec, SharedSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Templates of tensor names with ``{layer}`` and, for experts, ``{expert}``. Defaults are Llama's.

    Where a name ends without ``.weight`` it is a projection's: ``.weight`` and, where configured, ``.bias`` follow.
    """

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
    """part is q [H*hd, d], k and v [Hkv*hd, d], o [d, H*v]; with MLA q_a [rq, d] and q_b [H*hd, rq], or q, kv_b
    [H*(plain+v), r]"""
    query_norm: str = "model.layers.{layer}.self_attn.q_norm.weight"
    """[hd] or [H*hd], only where Family.qk_norm"""
    key_norm: str = "model.layers.{layer}.self_attn.k_norm.weight"
    """[hd] or [Hkv*hd], likewise"""
    latent_down: str = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa"
    """[r+rope, d], MLA"""
    latent_norm: str = "model.layers.{layer}.self_attn.kv_a_layernorm.weight"
    """[r], MLA"""
    latent_query_norm: str = "model.layers.{layer}.self_attn.q_a_layernorm.weight"
    """[rq], MLA where queries have a bottleneck"""
    sinks: str = ""
    """[H], one more logit in each head's softmax; '' where the family has none"""
    dense: str = "model.layers.{layer}.mlp.{part}_proj.weight"
    """part is gate and up [F, d], down [d, F]; layers without routed experts"""
    shared: str = "model.layers.{layer}.mlp.shared_experts.{part}_proj.weight"
    """the same of the shared expert"""
    shared_gate: str = "model.layers.{layer}.mlp.shared_expert_gate.weight"
    """[1, d], only where the shared expert is gated"""
    router: str = "model.layers.{layer}.mlp.gate.weight"
    """[E, d]"""
    router_bias: str = ""
    """[E], part of the logits; '' where the family has none"""
    correction_bias: str = ""
    """[E], added to scores for choosing only; '' where the family has none"""
    expert_gate: str = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
    """[f, d]"""
    expert_up: str = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
    """[f, d]"""
    expert_down: str = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    """[d, f]"""
    packed_experts: str = ""
    """Where one tensor has all experts of a layer, instead of the three above: part is gate_up_proj and down_proj,
    with _bias (see expert_store.py)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One ``model_type``. The functions read config.json through :class:`Fields` and raise its errors."""

    model_type: str
    """As config.json spells it."""
    tensors: TensorNames = field(default_factory=TensorNames)
    qk_norm: str = ""
    """RMS norm of queries and keys before the rotary embedding: over each ``head``, over the whole ``row``, or ''."""
    head_dim: int = 0
    """When config.json has none; 0: the hidden width divided by the number of heads."""
    num_experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    """Config fields that may hold the number of routed experts, first present wins."""
    expert_hidden_key: str = "moe_intermediate_size"
    """Config field with an expert's inner width."""
    moe_layers: Callable[[Fields, int], tuple[int, ...]] = lambda fields, num_layers: tuple(range(num_layers))
    """The decoder layers, of so many, that have routed experts."""
    router: Callable[[Fields], RouterSpec] = lambda fields: RouterSpec()
    """How experts are chosen; the default renormalises the chosen scores."""
    activation: Callable[[Fields], ActivationSpec] = lambda fields: ActivationSpec()
    """The activation of the routed experts."""
    shared: Callable[[Fields], SharedSpec | None] = lambda fields: None
    """The shared expert, None where there is none."""
    latent: Callable[[Fields], LatentSpec | None] = lambda fields: None
    """MLA's shape, None for grouped-query attention."""
    windows: Callable[[Fields, int], tuple[int | None, ...]] = lambda fields, num_layers: (None,) * num_layers
    """Attention window of each layer in tokens, None for full attention."""
    biases: Callable[[Fields], tuple[str, ...]] = lambda fields: ()
    """The attention projections that have a bias."""
    clip_qkv: Callable[[Fields], float | None] = lambda fields: None
    """Bound of queries, keys and values, None for none."""
    rope: Mapping[str, Any] = field(default_factory=dict)
    """rope_parameters when config.json has none."""
    rope_theta: float = 10_000.0
    """When config.json has none."""
    norm_eps: float = 1e-6
    """When config.json has none."""
    max_positions: int = 32_768
    """When config.json has none."""
