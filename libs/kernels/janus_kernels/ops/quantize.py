"""Weight-only quantisation: int8 with a scale per row (output channel), int4 with one per group of a row.

Both are symmetric and round to nearest: a weight w becomes scale * q with |w - scale * q| <= scale / 2 (and float32's
rounding). int8: q in -127..127, scale = max|row| / 127. int4: q in -7..7, scale = max|group| / 7. Arithmetic stays
float32: only the bytes that a step reads become fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus_kernels.ops.types import ExpertWeights

KINDS = ("int8", "int4")
GROUPS = (32, 64, 128)
_BLOCK = 32  # elements whose nibbles are packed together


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [N, K]."""

    data: torch.Tensor
    """int8 [N, K]; or uint8 [N, K / 2], two int4 in a byte: of each 32 elements, sixteen bytes, element i in the
    lower half of byte i and element 16 + i in the upper, each plus 8."""
    scale: torch.Tensor
    """fp32: [N]; or [N, K / group]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        rows, columns = self.data.shape
        return rows, columns * (2 if self.data.dtype == torch.uint8 else 1)

    @property
    def group(self) -> int:
        """Elements of a row that share a scale."""
        return self.shape[1] // (self.scale.shape[1] if self.scale.dim() == 2 else 1)


def quantize(weight_NK: torch.Tensor, kind: str, group: int = 32) -> QuantizedWeight:
    """The nearest ``int8`` or ``int4`` weight; ``group`` is int4's alone: 32, 64 or 128, and must divide K.

    Raises ValueError for another kind or group, and for weights that are not finite.
    """
    weight_NK = weight_NK.float()
    rows, columns = weight_NK.shape
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; allowed: {', '.join(KINDS)}")
    if not bool(weight_NK.isfinite().all()):
        raise ValueError(f"quantize: a weight of {rows} x {columns} holds numbers that are not finite")
    if kind == "int8":
        q, scale = _nearest(weight_NK[:, None], 127)
        return QuantizedWeight(q.view(rows, columns), scale.view(rows))
    if group not in GROUPS or columns % group:
        raise ValueError(
            f"group = {group} for rows of {columns}; allowed: {', '.join(map(str, GROUPS))}, dividing the row"
        )
    q, scale = _nearest(weight_NK.view(rows, -1, group), 7)
    halves = (q + 8).to(torch.uint8).view(rows, -1, 2, _BLOCK // 2)
    return QuantizedWeight((halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1).contiguous(), scale)


def _nearest(groups_NGg: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [N, G, g] and fp32 scales [N, G]; a group of zeros has the scale zero."""
    scale_NG = groups_NGg.abs().amax(-1) / most
    q = (groups_NGg / torch.where(scale_NG == 0, 1, scale_NG)[..., None]).round_().clamp_(-most, most)
    return q.to(torch.int8), scale_NG


def dequantize(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [N, K] of a quantised weight's parts."""
    if data.dtype == torch.int8:
        return data.float() * scale[:, None]
    blocks = data.view(data.shape[0], -1, _BLOCK // 2)
    q = torch.cat((blocks & 15, blocks >> 4), dim=-1).float() - 8
    return (q.view(*scale.shape, -1) * scale[..., None]).flatten(1)


def quantize_expert(expert: ExpertWeights, kind: str, group: int = 32) -> ExpertWeights:
    """One expert with quantised weights; biases stay float32. Raises ValueError as :func:`quantize` does."""
    gate, up, down = (quantize(part, kind, group) for part in (expert.gate, expert.up, expert.down))
    return ExpertWeights(
        gate.data, up.data, down.data, expert.gate_bias, expert.up_bias, expert.down_bias,
        (gate.scale, up.scale, down.scale),
    )  # fmt: skip
