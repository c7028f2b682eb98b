"""What callers and backends of the ops have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAGE_SIZES = (16, 32, 64, 128, 256)
"""Positions of a page that the compiled attention takes in its faster form."""
GRID = 1.5 * 2.0**18
"""Adding and subtracting it rounds a float64 to a multiple of 2^-34."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """How experts are chosen from router logits."""

    top_k: int
    """Experts per token."""
    scoring: str = "softmax"
    """``softmax`` over all experts, or ``sigmoid`` of each."""
    renormalize: bool = True
    """Divide the chosen scores by their sum."""
    scale: float = 1.0
    """Weights are multiplied by it."""
    groups: int = 1
    """Experts form this many groups of neighbours."""
    groups_kept: int = 1
    """A token chooses from its best groups only, this many."""
    group_score: str = "max"
    """What ranks a group: ``max`` (DeepSeek-V2) of its experts, or the sum of its best two, ``top2`` (V3)."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("scoring", self.scoring, ("softmax", "sigmoid")),
            ("group_score", self.group_score, ("max", "top2")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r}; allowed: {', '.join(allowed)}")
        if self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}; allowed: 1 and more")
        if not 1 <= self.groups_kept <= self.groups:
            raise ValueError(f"groups_kept = {self.groups_kept}; allowed: 1..groups = {self.groups}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What lies between an expert's first products and its last."""

    name: str = "swiglu"
    """``swiglu``: silu(gate) * up. ``clamped_swiglu`` (gpt_oss): (up + 1) * gate * sigmoid(alpha * gate), gate at most
    ``limit`` and up in [-limit, limit] first."""
    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        if self.name not in ("swiglu", "clamped_swiglu"):
            raise ValueError(f"activation = {self.name!r}; allowed: swiglu, clamped_swiglu")
        if not self.limit > 0:
            raise ValueError(f"limit = {self.limit}; allowed: above 0")


SWIGLU = Activation()


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert: float32, bfloat16 or float16, contiguous; views on a mapped checkpoint are fine.

    Biases, where a family has them, are contiguous float32. With ``scales`` the weights are quantised (see
    :mod:`janus_kernels.ops.quantize`, which makes them): int8 of these shapes, or uint8 of half as long rows.
    """

    gate: torch.Tensor
    """[f, d]"""
    up: torch.Tensor
    """[f, d]"""
    down: torch.Tensor
    """[d, f]"""
    gate_bias: torch.Tensor | None = None
    """[f]"""
    up_bias: torch.Tensor | None = None
    """[f]"""
    down_bias: torch.Tensor | None = None
    """[d]"""
    scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """Of gate, up and down: fp32 [N] of int8, fp16 [N, K / group, 2] of uint8."""

    def __post_init__(self) -> None:
        for name, weight in (("gate", self.gate), ("up", self.up), ("down", self.down)):
            bias: torch.Tensor | None = getattr(self, f"{name}_bias")
            if bias is not None:
                check("ExpertWeights", f"{name}_bias", bias, torch.float32, weight.shape[0])
        for i, weight in enumerate((self.gate, self.up, self.down) if self.scales else ()):
            assert self.scales is not None
            if weight.dtype not in (torch.int8, torch.uint8) or not weight.is_contiguous():
                raise ValueError(
                    f"ExpertWeights: weights with scales are {weight.dtype}; expected int8 or uint8"
                )
            scale, rows = self.scales[i], weight.shape[0]
            if weight.dtype == torch.int8:
                check("ExpertWeights", "a scale", scale, torch.float32, rows)
            else:
                groups = scale.shape[1] if scale.dim() > 1 else 1
                check("ExpertWeights", "a scale", scale, torch.float16, rows, groups, 2)


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What a call computed."""

    calls: int
    """Distinct experts."""
    pairs: int
    """(token, expert) pairs."""


class ExpertSet(dict[int, ExpertWeights]):
    """Experts of one layer on one instance, by id. Do not change it once it has been used."""

    compiled: Any = None
    """The C++ backend's own form, made at the first use."""
    grouped: Any = None
    """The same of the Triton backend."""


ExpertMapping = Mapping[int, ExpertWeights]


def check(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Raise ValueError unless ``tensor`` is a contiguous one of this dtype and shape."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} is {tensor.dtype} {tuple(tensor.shape)}"
            f"{'' if tensor.is_contiguous() else ', not contiguous'}; expected contiguous {dtype} {shape}"
        )


def fp32(x: torch.Tensor) -> torch.Tensor:
    """The same values as a contiguous float32 tensor."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
