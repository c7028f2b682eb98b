"""The ops that models are made of."""

from janus_kernels.ops import (
    ExpertWeights,
    RoutingSpec,
    apply_rotary,
    expert_ffn,
    linear,
    paged_attention,
    rms_norm,
    route,
    router_logits,
    swiglu_ffn,
)

__all__ = [
    "ExpertWeights",
    "RoutingSpec",
    "apply_rotary",
    "expert_ffn",
    "linear",
    "paged_attention",
    "rms_norm",
    "route",
    "router_logits",
    "swiglu_ffn",
]
