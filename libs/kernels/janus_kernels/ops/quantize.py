"""Weight-only quantisation: int8 with a scale per row (output channel), int4 with a scale and a shift per group.

int8 is symmetric and rounds to nearest: w becomes scale * q, q in -127..127, scale = max|row| / 127, so that
|w - scale * q| <= scale / 2 (and float32's rounding). int4 is affine: w becomes scale * q + shift, q in 0..15. Scale
and shift are sought without data: from the group's range, and from a narrower one, they are fitted by least squares to
the nearest q, and that again; of all these the least squared error is kept, never more than that of rounding to
nearest over the range. Both are float16, so that scale * q is exact in float32 and every build computes the same
weight; every step is an elementwise operation, so that every machine quantises to the same bits.

Arithmetic stays float32: only the bytes that a step reads become fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus_kernels.ops.types import ExpertWeights

KINDS = ("int8", "int4")
GROUPS = (32, 64, 128)
_BLOCK = 32  # elements whose nibbles are packed together
_WIDTHS, _FITS = (1.0, 0.85), 2  # shares of a group's range to begin from, fits from each
_AT_ONCE = 2**15  # elements that are quantised together: what is computed meanwhile stays in cache


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [N, K]."""

    data: torch.Tensor
    """int8 [N, K]; or uint8 [N, K / 2], two int4 in a byte: of each 32 elements, sixteen bytes, element i in the
    lower half of byte i and element 16 + i in the upper."""
    scale: torch.Tensor
    """int8: fp32 [N]. int4: fp16 [N, K / group, 2], scales and shifts."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        rows, columns = self.data.shape
        return rows, columns * (2 if self.data.dtype == torch.uint8 else 1)

    @property
    def group(self) -> int:
        """Elements of a row that share a scale."""
        return self.shape[1] // (self.scale.shape[1] if self.scale.dim() == 3 else 1)


def quantize(weight_NK: torch.Tensor, kind: str, group: int = 32) -> QuantizedWeight:
    """``int8`` or ``int4`` weights; ``group`` is int4's alone: 32, 64 or 128, and must divide K.

    Raises ValueError for another kind or group, for weights that are not finite, and as int4 for those beyond
    float16's 65504.
    """
    weight_NK = weight_NK.float()
    rows, columns = weight_NK.shape
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; allowed: {', '.join(KINDS)}")
    if not bool(weight_NK.isfinite().all()):
        raise ValueError(f"quantize: a weight of {rows} x {columns} holds numbers that are not finite")
    if kind == "int8":
        scale_N = weight_NK.abs().amax(-1) / 127
        q = (weight_NK / torch.where(scale_N == 0, 1, scale_N)[:, None]).round_().clamp_(-127, 127)
        return QuantizedWeight(q.to(torch.int8), scale_N)
    if group not in GROUPS or columns % group:
        raise ValueError(
            f"group = {group} for rows of {columns}; allowed: {', '.join(map(str, GROUPS))}, dividing the row"
        )
    if rows and float(weight_NK.abs().amax()) > torch.finfo(torch.float16).max:
        raise ValueError(f"quantize: a weight of {rows} x {columns} holds numbers beyond 65504; use int8")
    data = torch.empty(rows, columns // 2, dtype=torch.uint8)
    scale = torch.empty(rows, columns // group, 2, dtype=torch.float16)
    step = max(1, _AT_ONCE // columns)
    for begin in range(0, rows, step):
        part = weight_NK[begin : begin + step]
        q_gM, scale_M, shift_M = _affine(part.view(-1, group).T.contiguous())
        halves = q_gM.to(torch.uint8).T.reshape(part.shape[0], -1, 2, _BLOCK // 2)
        data[begin : begin + step] = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
        scale[begin : begin + step] = torch.stack((scale_M, shift_M), dim=-1).view(part.shape[0], -1, 2)
    return QuantizedWeight(data, scale)


def _affine(groups_gM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, whole numbers, fp32 [g, M], and the groups' scales and shifts, float16 values in fp32 [M]."""
    low_M, high_M = groups_gM.aminmax(dim=0)
    best: tuple[torch.Tensor, ...] = ()
    for width in _WIDTHS:
        scale_M = (high_M - low_M) * (width / 15)
        found = _nearest(groups_gM, scale_M, (low_M + high_M) / 2 - 7.5 * scale_M)
        best = _better(found, best) if best else found
        for _ in range(_FITS):
            found = _nearest(groups_gM, *_fit(groups_gM, found[0]))
            best = _better(found, best)
    return best[0], best[1], best[2]


def _nearest(
    groups_gM: torch.Tensor, scale_M: torch.Tensor, shift_M: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The nearest q [g, M], scales and shifts as they are stored, and squared errors [M]."""
    scale_M, shift_M = scale_M.half().float(), shift_M.half().float()
    q_gM = ((groups_gM - shift_M) / torch.where(scale_M == 0, 1, scale_M)).round_().clamp_(0, 15)
    off_gM = q_gM * scale_M + shift_M - groups_gM
    return q_gM, scale_M, shift_M, _sum(off_gM.mul_(off_gM))


def _fit(groups_gM: torch.Tensor, q_gM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and shifts of the least squared error for these q."""
    size = groups_gM.shape[0]
    mean_M = _sum(q_gM) / size
    apart_gM = q_gM - mean_M
    spread_M = _sum(apart_gM * apart_gM)
    scale_M = torch.where(spread_M > 0, _sum(apart_gM * groups_gM) / spread_M, 0)
    return scale_M, _sum(groups_gM) / size - scale_M * mean_M


def _better(found: tuple[torch.Tensor, ...], best: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Of each group the one with the smaller error; a fit that left float16's range has none."""
    return tuple(torch.where(found[3] < best[3], new, old) for new, old in zip(found, best, strict=True))


def _sum(x_gM: torch.Tensor) -> torch.Tensor:
    """Over the first dimension, a power of two, in one order on every machine."""
    while x_gM.shape[0] > 1:
        half = x_gM.shape[0] // 2
        x_gM = x_gM[:half] + x_gM[half:]
    return x_gM[0]


def dequantize(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp32 [N, K] of a quantised weight's parts."""
    if data.dtype == torch.int8:
        return data.float() * scale[:, None]
    blocks = data.view(data.shape[0], -1, _BLOCK // 2)
    q = torch.cat((blocks & 15, blocks >> 4), dim=-1).float().view(*scale.shape[:2], -1)
    return (q * scale[:, :, :1].float() + scale[:, :, 1:].float()).flatten(1)


def quantize_expert(expert: ExpertWeights, kind: str, group: int = 32) -> ExpertWeights:
    """One expert with quantised weights; biases stay float32. Raises ValueError as :func:`quantize` does."""
    gate, up, down = (quantize(part, kind, group) for part in (expert.gate, expert.up, expert.down))
    return ExpertWeights(
        gate.data, up.data, down.data, expert.gate_bias, expert.up_bias, expert.down_bias,
        (gate.scale, up.scale, down.scale),
    )  # fmt: skip
