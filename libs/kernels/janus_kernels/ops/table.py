"""The table of ops that is in use. One per backend; all are held to the same tests.

The device of an op's first tensor picks the backend: ``cuda`` computes with Triton, everything else with the
compiled C++ kernels, or plain torch where those were not built. ``JANUS_KERNELS=torch`` and ``=triton`` override
that for the whole process, :func:`use_backend` inside a ``with``. Triton takes CPU tensors through its
interpreter only: correct, and thousands of times slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from janus_kernels import triton
from janus_kernels.native import NATIVE
from janus_kernels.ops.types import Activation, ExpertMapping, ExpertStats, RoutingSpec

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTable:
    """One backend's ops; arguments are checked by the functions of :mod:`janus_kernels.ops` beforehand."""

    name: str
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """fp32 [T, d] by [N, d], bias fp32 [N] -> fp32 [T, N]."""
    quantized_linear: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """fp32 [T, d] by data and scale of a quantised [N, d], bias fp32 [N] -> fp32 [T, N]."""
    swiglu: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """fp32 [T, d], gate, up, down -> fp32 [T, d]."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """fp32 [..., d], weight [d], epsilon -> fp32 [..., d]."""
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """fp32 [T, H, h], cos and sin fp32 [positions, h / 2], positions int64 [T] -> fp32 [T, H, h]."""
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, int, Tensor | None], Tensor]
    """query, keys, values, query_starts, context_lens, block_tables, scale, window (0: none), sinks fp32 [H]."""
    route: Callable[[Tensor, RoutingSpec, Tensor | None], tuple[Tensor, Tensor]]
    """fp32 [T, E] -> int32 [T, k], fp64 [T, k]."""
    expert_ffn: Callable[[Tensor, Tensor, Tensor, Tensor, ExpertMapping, Activation, Tensor], ExpertStats]
    """x, ids, weights, mine, experts, activation, out."""
    combine: Callable[[list[Tensor], Tensor], None]
    sample: Callable[[Tensor, float, int, float, float, int, int], int]
    """logits fp32 [V], temperature, top_k, top_p, min_p, seed, index."""


def _torch() -> OpTable:
    from janus_kernels.ops.torch_backend import TABLE

    return TABLE


def _native() -> OpTable:
    from janus_kernels.ops.native_backend import TABLE

    return TABLE


def _triton() -> OpTable:
    from janus_kernels.ops.triton_backend import make_table

    return make_table()


_BACKENDS: dict[str, Callable[[], OpTable]] = {"native": _native, "torch": _torch, "triton": _triton}


def _why_not(name: str) -> str | None:
    if name == "native" and NATIVE is None:
        return "the compiled kernels were not built, or JANUS_KERNELS leaves them out"
    return triton.unavailable() if name == "triton" else None


def backends() -> tuple[str, ...]:
    """Names of the backends that can run here, the best for CPU tensors first."""
    return tuple(name for name in _BACKENDS if _why_not(name) is None)


class _Forced:
    """The name of the backend that takes everything, whatever the device; None lets the device decide."""

    name: str | None = {"torch": "torch", "off": "torch", "triton": "triton"}.get(
        os.environ.get("JANUS_KERNELS", "").lower()
    )


_tables: dict[str, OpTable] = {}


def _table(name: str) -> OpTable:
    table = _tables.get(name)
    if table is None:
        reason = _why_not(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
        table = _tables[name] = _BACKENDS[name]()
    return table


def backend(device: torch.device | str = "cpu") -> OpTable:
    """The table that computes on tensors of ``device``.

    Raises RuntimeError when ``JANUS_KERNELS`` asks for a backend that cannot run here.
    """
    if _Forced.name is not None:
        return _table(_Forced.name)
    kind = device if isinstance(device, str) else device.type
    if kind == "cuda" and triton.unavailable() is None:
        return _table("triton")
    return _table("torch" if kind == "cuda" or NATIVE is None else "native")


def backend_of(op: str, x: Tensor, *others: Tensor | None) -> OpTable:
    """The table for ``x``, once it is certain that all are on its device: kernels take addresses on trust."""
    if x.is_cpu and _Forced.name is None and NATIVE is not None:
        # The usual case, several times in every layer: comparing devices takes as long as a small op.
        for other in others:
            if other is not None and not other.is_cpu:
                break
        else:
            return _table("native")
    device = x.device
    for other in others:
        if other is not None and other.device != device:
            raise ValueError(f"{op}: tensors on {device} and {other.device}; expected one device")
    return backend(device)


@contextmanager
def use_backend(name: str) -> Iterator[OpTable]:
    """Compute with one backend inside a ``with``, whatever the device; for tests and measurements."""
    if name not in backends():
        raise ValueError(f"backend {name!r}; available here: {', '.join(backends())}")
    before, _Forced.name = _Forced.name, name
    try:
        yield _table(name)
    finally:
        _Forced.name = before
