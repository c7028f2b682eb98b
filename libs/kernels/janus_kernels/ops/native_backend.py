"""The ops in C++ (csrc/). What they do not take, an odd dtype or stride, goes to plain torch."""

from __future__ import annotations

from typing import Any

import torch

from janus_kernels.native import NATIVE
from janus_kernels.ops import torch_backend as plain
from janus_kernels.ops.table import OpTable
from janus_kernels.ops.types import PAGE_SIZES, Activation, ExpertMapping, ExpertSet, ExpertStats, RoutingSpec

assert NATIVE is not None
_native = NATIVE
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_QUANTIZED = {torch.int8: 3, torch.uint8: 4}


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    code = _CODES.get(weight.dtype)
    if code is None or not weight.is_contiguous():
        return plain.linear(x, weight, bias)
    (tokens, width), rows = x.shape, weight.shape[0]
    out = torch.empty(tokens, rows)
    _native.linear(
        x.data_ptr(), tokens, width, weight.data_ptr(), code, _address(bias), 0, 0, rows, out.data_ptr(),
    )  # fmt: skip
    return out


def _quantized_linear(
    x: torch.Tensor, data: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    if not data.is_contiguous() or not scale.is_contiguous():
        return plain.quantized_linear(x, data, scale, bias)
    (tokens, width), rows = x.shape, data.shape[0]
    out = torch.empty(tokens, rows)
    _native.linear(
        x.data_ptr(), tokens, width, data.data_ptr(), _QUANTIZED[data.dtype], _address(bias), scale.data_ptr(),
        width // scale.shape[1] if data.dtype == torch.uint8 else 0, rows, out.data_ptr(),
    )  # fmt: skip
    return out


def _swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    code = _CODES.get(gate.dtype)
    parts = (gate, up, down)
    if code is None or any(p.dtype != gate.dtype or not p.is_contiguous() for p in parts):
        return plain.swiglu(x, gate, up, down)
    (tokens, width), inner = x.shape, gate.shape[0]
    h, out = torch.empty(tokens, inner), torch.empty(tokens, width)
    _native.swiglu(
        x.data_ptr(), tokens, width, gate.data_ptr(), up.data_ptr(), down.data_ptr(), code, inner, h.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    code = _CODES.get(weight.dtype)
    if code is None or not weight.is_contiguous():
        return plain.rms_norm(x, weight, eps)
    out, width = torch.empty_like(x), x.shape[-1]
    if width:
        _native.rms_norm(
            x.data_ptr(), x.numel() // width, width, weight.data_ptr(), code, eps, out.data_ptr()
        )
    return out


def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    tokens, heads, width = x.shape
    _native.rotary(
        x.data_ptr(),
        tokens,
        heads,
        width,
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        out.data_ptr(),
    )
    return out


def _rows(cache: torch.Tensor) -> int | None:
    """Elements from one position's head to the next; None when the cache is not laid out evenly."""
    blocks, size, heads, _ = cache.stride()
    evenly = cache.stride(3) == 1 and size == heads * cache.shape[2] and blocks == size * cache.shape[1]
    return heads if evenly else None


def _by_columns(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether pages are what :func:`janus_kernels.ops.new_pages` makes: the faster form."""
    size = keys.shape[1]
    return keys.stride(1) == 1 and keys.stride(3) == size and values.stride(3) == 1 and size in PAGE_SIZES


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    code, columns = _CODES.get(keys.dtype), _by_columns(keys, values)
    key_row, value_row = (1, values.stride(1)) if columns else (_rows(keys), _rows(values))
    if code is None or key_row is None or value_row is None or keys.dtype != values.dtype:
        return plain.attention(
            query, keys, values, query_starts, context_lens, block_tables, scale, window, sinks
        )
    tokens, heads, width = query.shape
    out = torch.empty(tokens, heads, values.shape[3])
    _native.attention(
        query.data_ptr(), keys.data_ptr(), values.data_ptr(), code, query_starts.data_ptr(),
        context_lens.data_ptr(), block_tables.data_ptr(), _address(sinks), out.data_ptr(), context_lens.shape[0], heads,
        keys.shape[2], width, values.shape[3], key_row, value_row, keys.shape[1], block_tables.shape[1], window,
        scale, columns, keys.stride(0), keys.stride(2), values.stride(0), values.stride(2),
    )  # fmt: skip
    return out


def _route(
    logits: torch.Tensor, spec: RoutingSpec, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, experts = logits.shape
    ids = torch.empty(tokens, spec.top_k, dtype=torch.int32)
    weights = torch.empty(tokens, spec.top_k, dtype=torch.float64)
    _native.route(
        logits.data_ptr(), tokens, experts, _address(bias), spec.top_k,
        spec.scoring == "sigmoid", spec.renormalize, spec.scale, spec.groups, spec.groups_kept,
        spec.group_score == "top2", ids.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return ids, weights


def _table(experts: ExpertMapping) -> Any:
    """The experts' compiled form; None where plain torch must do (mixed dtypes, not contiguous, none)."""
    kept = isinstance(experts, ExpertSet)
    if kept and experts.compiled is not None:  # type: ignore[attr-defined]
        return experts.compiled  # type: ignore[attr-defined]
    parts = [part for e in experts.values() for part in (e.gate, e.up, e.down)]
    if (
        not parts
        or len({part.dtype for part in parts}) != 1
        or not all(part.is_contiguous() for part in parts)
    ):
        return None
    one = next(iter(experts.values()))
    code = (_CODES if one.scales is None else _QUANTIZED).get(one.gate.dtype)
    kinds = {None if e.scales is None else tuple(s.shape for s in e.scales) for e in experts.values()}
    if code is None or len(kinds) > 1:
        return None
    inner, hidden = one.gate.shape[0], one.down.shape[0]
    halves = 2 if code == _QUANTIZED[torch.uint8] else 1
    wide, narrow = (inner, hidden // halves), (hidden, inner // halves)
    for expert, e in experts.items():
        if e.gate.shape != wide or e.up.shape != wide or e.down.shape != narrow:
            shapes = tuple(e.gate.shape), tuple(e.up.shape), tuple(e.down.shape)
            raise ValueError(f"expert {expert} has the shapes {shapes}; its peers' gate is {wide}")
    table = _native.ExpertTable(max(experts) + 1, hidden, inner, code)
    group = hidden // one.scales[0].shape[1] if one.scales and code == _QUANTIZED[torch.uint8] else 0
    for expert, e in experts.items():
        every = (e.gate, e.up, e.down, e.gate_bias, e.up_bias, e.down_bias, *(e.scales or (None, None, None)))
        table.set(expert, *(_address(part) for part in every), group)
    if kept:
        experts.compiled = table  # type: ignore[attr-defined]
    return table


def _expert_ffn(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    mine: torch.Tensor,
    experts: ExpertMapping,
    activation: Activation,
    out: torch.Tensor,
) -> ExpertStats:
    table = _table(experts)
    if table is None:
        return plain.expert_ffn(x, ids, weights, mine, experts, activation, out)
    tokens, topk = ids.shape
    calls, pairs = table.run(
        x.data_ptr(), ids.data_ptr(), mine.data_ptr(), weights.data_ptr(), tokens, topk,
        activation.name == "clamped_swiglu", activation.alpha, activation.limit, out.data_ptr(),
    )  # fmt: skip
    return ExpertStats(calls, pairs)


def _combine(partials: list[torch.Tensor], out: torch.Tensor) -> None:
    _native.combine([partial.data_ptr() for partial in partials], out.numel(), out.data_ptr())


def _sample(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, index: int
) -> int:
    return int(
        _native.sample(logits.data_ptr(), logits.shape[0], temperature, top_k, top_p, min_p, seed, index)
    )


TABLE = OpTable(
    name="native", linear=_linear, quantized_linear=_quantized_linear,
    swiglu=_swiglu, rms_norm=_rms_norm, rotary=_rotary, attention=_attention,
    route=_route, expert_ffn=_expert_ffn, combine=_combine, sample=_sample,
)  # fmt: skip
