"""Rotary frequencies for each kind of RopeSpec, in float32 with transformers' order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from janus_models.specs import RopeSpec


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """([head_dim / 2] fp32 radians per position, factor on cos and sin)."""
    return _KINDS[spec.kind](spec, head_dim)


def score_scale(spec: RopeSpec) -> float:
    """What DeepSeek's attention scores are multiplied by beside 1/sqrt(head_dim): the square of yarn's mscale."""
    if spec.kind == "default" or not spec.mscale_all_dim:
        return 1.0
    return _mscale(spec.factor, spec.mscale_all_dim) ** 2


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class RopeTable:
    """cos and sin by position, grown as longer contexts come: a long-context model pays for what it uses."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: str = "cpu", start: int = 2048) -> None:
        self._frequencies, self._factor = inverse_frequencies(spec, head_dim)
        self._device = device
        self.cos, self.sin = self._build(start)

    def ensure(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each fp32 [>= length, head_dim / 2]."""
        have = self.cos.shape[0]
        if length > have:
            self.cos, self.sin = self._build(max(length, 2 * have))
        return self.cos, self.sin

    def _build(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self._frequencies
        return (angles.cos() * self._factor).to(self._device), (angles.sin() * self._factor).to(self._device)


def _powers(spec: RopeSpec, dim: int) -> torch.Tensor:
    powers: torch.Tensor = spec.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return powers


def _default(spec: RopeSpec, dim: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _powers(spec, dim), 1.0


def _linear(spec: RopeSpec, dim: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _powers(spec, dim) / spec.factor, 1.0


def _yarn(spec: RopeSpec, dim: int) -> tuple[torch.Tensor, float]:
    """Peng et al., arXiv 2309.00071: interpolate slow dimensions, keep quick ones, ramp in between."""

    def correction(rotations: float) -> float:
        return (
            dim
            * math.log(spec.original_max_positions / (rotations * 2 * math.pi))
            / (2 * math.log(spec.theta))
        )

    low, high = correction(spec.beta_fast), correction(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers, keep = _powers(spec, dim), 1 - ramp
    frequencies = 1.0 / (spec.factor * powers) * (1 - keep) + 1.0 / powers * keep
    if spec.attention_factor is not None:
        return frequencies, spec.attention_factor
    if spec.mscale and spec.mscale_all_dim:
        return frequencies, _mscale(spec.factor, spec.mscale) / _mscale(spec.factor, spec.mscale_all_dim)
    return frequencies, _mscale(spec.factor)


def _llama3(spec: RopeSpec, dim: int) -> tuple[torch.Tensor, float]:
    frequencies = 1.0 / _powers(spec, dim)
    low, high = spec.low_freq_factor, spec.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = spec.original_max_positions / low, spec.original_max_positions / high
    scaled = torch.where(wavelengths > longest, frequencies / spec.factor, frequencies)
    smooth = (spec.original_max_positions / wavelengths - low) / (high - low)
    between = ~(wavelengths < shortest) & ~(wavelengths > longest)
    return torch.where(between, (1 - smooth) * scaled / spec.factor + smooth * scaled, scaled), 1.0


_KINDS: dict[str, Callable[[RopeSpec, int], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
}
