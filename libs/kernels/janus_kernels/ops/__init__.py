"""Ops on tensors. Shapes: T tokens, d hidden, f expert width, E experts, k experts per token, V vocabulary.

Everything here is batch-invariant: a token's result does not depend, in any bit, on the other tokens of the
call, on the number of threads, or on the instance that computes it. Arithmetic is float32; weights may be
float32, bfloat16 or float16. :func:`backend` says what computes; ``JANUS_KERNELS`` chooses.
"""

from __future__ import annotations

from janus_kernels.ops.attention import apply_rotary, paged_attention
from janus_kernels.ops.cache import LARGE_PAGE, back_pages, new_pages, store_rows
from janus_kernels.ops.dense import linear, quantized_linear, rms_norm, swiglu_ffn
from janus_kernels.ops.experts import (
    Activation,
    ExpertSet,
    ExpertStats,
    ExpertWeights,
    combine,
    expert_ffn,
)
from janus_kernels.ops.quantize import QuantizedWeight, dequantize, quantize, quantize_expert
from janus_kernels.ops.routing import RoutingSpec, route, router_logits
from janus_kernels.ops.sampling import add_bias, allow, forbid, penalize, sample
from janus_kernels.ops.table import OpTable, backend, backends, use_backend

__all__ = [
    "LARGE_PAGE",
    "Activation",
    "ExpertSet",
    "ExpertStats",
    "ExpertWeights",
    "OpTable",
    "QuantizedWeight",
    "RoutingSpec",
    "add_bias",
    "allow",
    "apply_rotary",
    "back_pages",
    "backend",
    "backends",
    "combine",
    "dequantize",
    "expert_ffn",
    "forbid",
    "linear",
    "new_pages",
    "paged_attention",
    "penalize",
    "quantize",
    "quantize_expert",
    "quantized_linear",
    "rms_norm",
    "route",
    "router_logits",
    "sample",
    "store_rows",
    "swiglu_ffn",
    "use_backend",
]
