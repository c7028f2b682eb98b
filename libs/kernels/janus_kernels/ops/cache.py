"""Memory of a paged KV cache, laid out as attention reads it fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from janus_kernels.native import NATIVE
from janus_kernels.ops.types import PAGE_SIZES

LARGE_PAGE = 2 << 20
"""Bytes of a large memory page."""


def new_pages(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str, *, columns: bool
) -> torch.Tensor:
    """Unwritten pages: a view [layers, blocks, block_size, Hkv, width] on memory of another order.

    On a CPU a KV head's part of a page is contiguous, [block_size, width], or with ``columns`` (keys)
    [width, block_size]: sixteen positions of a column make one register of scores. Other devices, and page sizes
    that the kernel does not take, get the plain order.
    """
    layers, blocks, size, heads, width = shape
    if torch.device(device).type != "cpu" or size not in PAGE_SIZES:
        return torch.empty(shape, dtype=dtype, device=device)
    if columns:
        return _large((layers, blocks, heads, width, size), dtype).permute(0, 1, 4, 2, 3)
    return _large((layers, blocks, heads, size, width), dtype).transpose(2, 3)


def back_pages(pages: torch.Tensor, first: int, last: int) -> int:
    """Memory for blocks ``first`` .. ``last - 1`` of one layer's pages now, rather than at their first write, which
    would wait while the system clears a large page: milliseconds on a virtual machine. What was written stays.

    Returns bytes asked for; 0 where there is nothing to do, as on other devices.
    """
    if NATIVE is None or pages.device.type != "cpu" or last <= first:
        return 0
    count = (last - first) * pages[0].numel() * pages.itemsize
    return count if NATIVE.populate(pages[first].data_ptr(), count) else 0


def store_rows(pages: torch.Tensor, rows_THw: torch.Tensor, slots_T: torch.Tensor) -> None:
    """Write [T, Hkv, width] into one layer's pages [blocks, block_size, Hkv, width] at flat slots, int64 [T]."""
    rows_THw = rows_THw.to(pages.dtype)
    if pages.is_contiguous():
        pages.flatten(0, 1).index_copy_(0, slots_T, rows_THw)
    elif pages.device.type == "cpu":
        # Half of what torch's indexing takes, once per layer and step for keys and for values.
        blocks, offsets = np.divmod(slots_T.numpy(), pages.shape[1])
        _bits(pages)[blocks, offsets] = _bits(rows_THw)
    else:
        pages[slots_T // pages.shape[1], slots_T % pages.shape[1]] = rows_THw


def _bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """The tensor's memory as numpy takes it, which knows no bfloat16."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _large(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory on large pages where the system gives them: random pages of a cache wait for address translation.

    Aligned, so that a KV head's part does not lie across more of them than it must.
    """
    count = 1
    for n in shape:
        count *= n
    nbytes = count * dtype.itemsize
    memory = torch.empty(nbytes + LARGE_PAGE, dtype=torch.uint8)
    begin = -memory.data_ptr() % LARGE_PAGE
    if NATIVE is not None and nbytes >= LARGE_PAGE:
        NATIVE.prefer_large_pages(memory.data_ptr() + begin, nbytes)
    return memory[begin : begin + nbytes].view(dtype).view(shape)
