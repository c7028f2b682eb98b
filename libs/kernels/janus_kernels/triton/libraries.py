"""Paged attention on CUDA by FlashInfer or flash-attn where one is asked for, else by our kernels.

**Neither library's path has ever run**: their calls follow the signatures of flashinfer-python 0.7 and flash-attn
2.8, and tests run them against stand-ins of that shape. What differs from our kernels:

- queries are rounded to the cache's dtype, outputs come in it: libraries compute in half precision;
- that a query's bits are the same in any batch is asked of them (no split over keys) but unproven; ours promise it;
- FlashInfer plans on the host: one sync per step, and no CUDA graph. flash-attn's call is capturable.

``JANUS_ATTENTION_LIBRARY=triton`` (default: the promise of bit-equal tokens holds) keeps to our kernels; ``flashinfer``
and ``flash-attn`` ask for one library, and fail where it is absent; ``auto`` takes what is there. The choice depends
on static facts of the call alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import weakref
from typing import Any

import torch

from janus_kernels.triton import attention as ours

log = logging.getLogger("janus.kernels")

_WORKSPACE = 256 << 20
_MODULES = {"flashinfer": "flashinfer", "flash-attn": "flash_attn"}


@functools.cache
def library() -> str:
    """``flashinfer``, ``flash-attn`` or ``triton``. Raises RuntimeError when what was asked for is absent."""
    asked = os.environ.get("JANUS_ATTENTION_LIBRARY", "triton").lower()
    if asked not in ("auto", "triton", *_MODULES):
        raise RuntimeError(
            f"JANUS_ATTENTION_LIBRARY={asked!r}; allowed: auto, triton, flashinfer, flash-attn (see docs/gpu.md)"
        )
    there = [name for name, module in _MODULES.items() if importlib.util.find_spec(module) is not None]
    if asked in _MODULES and asked not in there:
        raise RuntimeError(f"JANUS_ATTENTION_LIBRARY={asked}, but {_MODULES[asked]} is not installed")
    chosen = asked if asked != "auto" else next(iter(there), "triton")
    if chosen != "triton":
        log.warning(
            "attention by %s: half precision, not proven independent of the batch (JANUS_ATTENTION_LIBRARY=triton is)",
            chosen,
        )
    return chosen


def takes(
    name: str, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor | None
) -> bool:
    """Whether a library computes this: half precision, plain pages, equal widths that it knows, no sinks."""
    if sinks is not None or keys.dtype not in (torch.float16, torch.bfloat16) or keys.dtype != values.dtype:
        return False
    width = query.shape[2]
    if values.shape != keys.shape or not (keys.is_contiguous() and values.is_contiguous()):
        return False
    if name == "flashinfer":
        return width in (64, 128, 256)
    return (
        width <= 256 and width % 8 == 0 and keys.shape[1] % 256 == 0
    )  # flash-attn's pages have 256 places or n times


class _Plan:
    """FlashInfer's plan of one step, reused by its layers as long as the step's tensors are the same."""

    def __init__(self) -> None:
        self.wrapper: Any = None
        self._made_for: tuple[Any, ...] = ()
        self._tensors: tuple[weakref.ref[torch.Tensor], ...] = ()

    def fits(self, tensors: tuple[torch.Tensor, ...], facts: tuple[Any, ...]) -> bool:
        known = tuple(ref() for ref in self._tensors)
        same = len(known) == len(tensors) and all(a is b for a, b in zip(known, tensors, strict=True))
        return same and self._made_for == (*facts, *(t._version for t in tensors))

    def note(self, tensors: tuple[torch.Tensor, ...], facts: tuple[Any, ...]) -> None:
        self._tensors = tuple(weakref.ref(t) for t in tensors)
        self._made_for = (*facts, *(t._version for t in tensors))


_plans: dict[torch.device, _Plan] = {}


def by_flashinfer(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, query_starts: torch.Tensor,
    context_lens: torch.Tensor, block_tables: torch.Tensor, scale: float, window: int,
) -> torch.Tensor:  # fmt: skip
    """See :func:`attention`. Never run on a GPU; plans on the host when the step is a new one."""
    plan = _plans.setdefault(query.device, _Plan())
    if plan.wrapper is None:
        workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=query.device)
        flashinfer = importlib.import_module("flashinfer")
        plan.wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    heads, (_, size, kv_heads, width) = query.shape[1], keys.shape
    tensors, facts = (
        (query_starts, context_lens, block_tables),
        (heads, kv_heads, width, size, scale, window, keys.dtype),
    )
    if not plan.fits(tensors, facts):
        pages = (context_lens + (size - 1)) // size
        used = torch.arange(block_tables.shape[1], device=query.device)[None] < pages[:, None]
        indptr = torch.zeros_like(query_starts)
        torch.cumsum(pages, 0, out=indptr[1:])
        plan.wrapper.plan(
            qo_indptr=query_starts, paged_kv_indptr=indptr, paged_kv_indices=block_tables[used],
            paged_kv_last_page_len=(context_lens - 1) % size + 1, num_qo_heads=heads, num_kv_heads=kv_heads,
            head_dim_qk=width, page_size=size, causal=True, sm_scale=scale, window_left=window - 1 if window else -1,
            q_data_type=keys.dtype, kv_data_type=keys.dtype, disable_split_kv=True,
        )  # fmt: skip
        plan.note(tensors, facts)
    out: torch.Tensor = plan.wrapper.run(query.to(keys.dtype), (keys, values))
    return out.float()


def by_flash_attn(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, query_starts: torch.Tensor,
    context_lens: torch.Tensor, block_tables: torch.Tensor, scale: float, window: int,
) -> torch.Tensor:  # fmt: skip
    """See :func:`attention`. Never run on a GPU; no host sync: lengths are bounded by shapes."""
    starts = torch.zeros_like(query_starts)
    torch.cumsum(context_lens, 0, out=starts[1:])
    flash_attn = importlib.import_module("flash_attn")
    out: torch.Tensor = flash_attn.flash_attn_varlen_func(
        query.to(keys.dtype), keys, values, cu_seqlens_q=query_starts, cu_seqlens_k=starts,
        # At one query per sequence it would split over keys by a rule that looks at the batch.
        max_seqlen_q=max(2, query.shape[0]), max_seqlen_k=block_tables.shape[1] * keys.shape[1],
        softmax_scale=scale, causal=True, window_size=(window - 1, 0) if window else (-1, -1), block_table=block_tables,
    )  # fmt: skip
    return out.float()


_CALLS = {"flashinfer": by_flashinfer, "flash-attn": by_flash_attn}


def attention(
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
    """See :class:`OpTable`: by the library that is chosen and takes the call, else by our kernels."""
    name = library() if query.is_cuda else "triton"
    if name != "triton" and query.shape[0] and takes(name, query, keys, values, sinks):
        return _CALLS[name](query, keys, values, query_starts, context_lens, block_tables, scale, window)
    return ours.attention(query, keys, values, query_starts, context_lens, block_tables, scale, window, sinks)
