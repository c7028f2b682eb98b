"""The table of ops that is in use. One per backend; all are held to the same tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from janus_kernels.native import NATIVE
from janus_kernels.ops.types import Activation, ExpertMapping, ExpertStats, RoutingSpec

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTable:
    """One backend's ops; arguments are checked by the functions of :mod:`janus_kernels.ops` beforehand."""

    name: str
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """fp32 [T, d] by [N, d], bias fp32 [N] -> fp32 [T, N]."""
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


_BACKENDS: dict[str, Callable[[], OpTable]] = {"native": _native, "torch": _torch}


def backends() -> tuple[str, ...]:
    """Names of the backends that can run here, the best first."""
    return tuple(name for name in _BACKENDS if name != "native" or NATIVE is not None)


class _Current:
    """The table in use; process-wide."""

    table: OpTable | None = None


def backend() -> OpTable:
    """The table in use: the compiled one where there is one, unless ``JANUS_KERNELS=torch``."""
    table = _Current.table
    if table is None:
        table = _Current.table = _BACKENDS[backends()[0]]()
    return table


@contextmanager
def use_backend(name: str) -> Iterator[OpTable]:
    """Compute with another backend inside a ``with``; for tests and measurements."""
    if name not in backends():
        raise ValueError(f"backend {name!r}; available here: {', '.join(backends())}")
    before = backend()
    _Current.table = _BACKENDS[name]()
    try:
        yield _Current.table
    finally:
        _Current.table = before
