"""Routed experts: grouped SwiGLU and a combination whose rounding does not depend on the assignment.

Each weighted output w*y, a float64 product, is rounded to a multiple of 2^-34; sums of such numbers are
exact in float64 while they stay below 2^19, hence the same in any order and over any split of experts over
instances. Adding the partial sums and rounding once to float32 ends it. Larger sums lose the guarantee, not
the value; NaN and infinities stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from janus_kernels.native import NATIVE
from janus_kernels.ops.dense import DTYPE_CODES, reference_linear

GRID = 1.5 * 2.0**18
"""Adding and subtracting it rounds a float64 to a multiple of 2^-34."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert: float32, bfloat16 or float16, contiguous; views on a mapped checkpoint are fine."""

    gate: torch.Tensor
    """[f, d]"""
    up: torch.Tensor
    """[f, d]"""
    down: torch.Tensor
    """[d, f]"""


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What a call computed."""

    calls: int
    """Distinct experts."""
    pairs: int
    """(token, expert) pairs."""


class ExpertSet(dict[int, ExpertWeights]):
    """Experts of one layer on one instance, by id. Do not change it once it has been used."""

    _table: Any = None

    def table(self) -> Any:
        """Compiled form; None where plain torch must do (mixed dtypes, not contiguous, no compiled kernels)."""
        if self._table is None and NATIVE is not None and self:
            self._table = _native_table(self)
        return self._table


def _native_table(experts: Mapping[int, ExpertWeights]) -> Any:
    assert NATIVE is not None
    parts = [part for e in experts.values() for part in (e.gate, e.up, e.down)]
    if len({part.dtype for part in parts}) != 1 or not all(part.is_contiguous() for part in parts):
        return None
    code = DTYPE_CODES.get(parts[0].dtype)
    inner, hidden = parts[0].shape
    for expert, e in experts.items():
        if (
            e.gate.shape != (inner, hidden)
            or e.up.shape != (inner, hidden)
            or e.down.shape != (hidden, inner)
        ):
            raise ValueError(
                f"expert {expert} has other shapes than its peers: {e.gate.shape}, {e.down.shape}"
            )
    if code is None:
        return None
    table = NATIVE.ExpertTable(max(experts) + 1, hidden, inner, code)
    for expert, e in experts.items():
        table.set(expert, e.gate.data_ptr(), e.up.data_ptr(), e.down.data_ptr())
    return table


def expert_ffn(
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    mine_TK: torch.Tensor,
    experts: Mapping[int, ExpertWeights],
    out_TD: torch.Tensor,
) -> ExpertStats:
    """Partial sum over the (token, expert) pairs that are ``mine``.

    Args:
        x_TD: fp32 hidden states.
        ids_TK: int32 logical expert ids.
        weights_TK: routing weights, fp64 (others are widened).
        mine_TK: bool, the pairs to compute here.
        experts: weights of at least the experts that are mine.
        out_TD: fp64, overwritten.

    Raises KeyError for an expert that is mine but not in ``experts``.
    """
    table = (
        experts.table()
        if isinstance(experts, ExpertSet)
        else _native_table(experts)
        if NATIVE and experts
        else None
    )
    if table is None:
        return reference_expert_ffn(x_TD, ids_TK, weights_TK, mine_TK, experts, out_TD)
    tokens, topk = ids_TK.shape
    weights_TK = weights_TK.double().contiguous()
    for name, tensor, dtype, shape in (
        ("x", x_TD, torch.float32, (tokens, x_TD.shape[-1])),
        ("ids", ids_TK, torch.int32, (tokens, topk)),
        ("weights", weights_TK, torch.float64, (tokens, topk)),
        ("mine", mine_TK, torch.bool, (tokens, topk)),
        ("out", out_TD, torch.float64, tuple(x_TD.shape)),
    ):
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(
                f"expert_ffn: {name} is {tensor.dtype} {tuple(tensor.shape)}; expected contiguous {dtype} {shape}"
            )
    calls, pairs = table.run(
        x_TD.data_ptr(),
        ids_TK.data_ptr(),
        mine_TK.data_ptr(),
        weights_TK.data_ptr(),
        tokens,
        topk,
        out_TD.data_ptr(),
    )
    return ExpertStats(calls, pairs)


def reference_expert_ffn(
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    mine_TK: torch.Tensor,
    experts: Mapping[int, ExpertWeights],
    out_TD: torch.Tensor,
) -> ExpertStats:
    """:func:`expert_ffn` in plain torch."""
    out_TD.zero_()
    active = torch.unique(ids_TK[mine_TK]).tolist()
    pairs = 0
    for expert in active:
        rows, columns = torch.where((ids_TK == expert) & mine_TK)
        weights = experts[expert]
        x = x_TD[rows]
        gate = torch.nn.functional.silu(reference_linear(x, weights.gate, None))
        y = reference_linear(gate * reference_linear(x, weights.up, None), weights.down, None).double()
        y *= weights_TK[rows, columns].double()[:, None]
        out_TD.index_add_(0, rows, y.add_(GRID).sub_(GRID))
        pairs += rows.shape[0]
    return ExpertStats(len(active), pairs)


def combine(partials: Sequence[torch.Tensor], out_TD: torch.Tensor) -> torch.Tensor:
    """Sum of fp64 [T, d] partial sums, rounded once into fp32 ``out_TD``."""
    total = partials[0] if len(partials) == 1 else partials[0] + partials[1]
    for partial in partials[2:]:
        total += partial
    return out_TD.copy_(total)
