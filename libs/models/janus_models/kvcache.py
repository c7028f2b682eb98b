"""The paged KV cache and the description of one step's batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from janus_kernels.ops import LARGE_PAGE, back_pages, new_pages, store_rows

_Slots = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMeta:
    """T tokens of B sequences, those of one sequence together and in order. Prefill and decode mix freely."""

    positions: torch.Tensor
    """int64 [T]: position of each token in its sequence"""
    query_starts: torch.Tensor
    """int32 [B+1]: sequence i has the tokens query_starts[i] .. query_starts[i+1]"""
    context_lens: torch.Tensor
    """int32 [B]: tokens in the cache of each sequence once this step's are written"""
    block_tables: torch.Tensor
    """int32 [B, max_blocks]: cache blocks of each sequence in order; entries past the context are not read"""
    slots: torch.Tensor
    """int64 [T]: where each token's key and value go: block * block_size + offset"""

    def to(self, device: str) -> BatchMeta:
        """The same on ``device``; itself where it is there already."""
        if self.slots.device.type == device:
            return self
        return BatchMeta(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class KvCache:
    """What attention remembers, per layer: keys and values, views [num_blocks, block_size, Hkv, hd] each.

    With ``latent_dim`` (MLA) there is one entry per token, ``head_dim`` wide, its latent and then the rotary key;
    ``values`` is a view of its first ``latent_dim`` numbers.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        latent_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        # Not zeroed: pages cost memory only once tokens are written to them.
        if latent_dim is None:
            self.keys = new_pages(shape, dtype, device, columns=True)
            self.values = new_pages(shape, dtype, device, columns=False)
        else:
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = self.keys[..., :latent_dim]
        self._latent = latent_dim is not None
        self.layers = [(self.keys[layer], self.values[layer]) for layer in range(num_layers)]
        """Each layer's keys and values, views."""
        self.num_blocks = num_blocks
        self.block_size = block_size

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return (1 if self._latent else 2) * self.keys.numel() * self.keys.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of all layers, as :meth:`read_block` gives them."""
        return self.nbytes // self.num_blocks

    @property
    def large_blocks(self) -> int:
        """Blocks of a layer's keys in a large memory page; all, where the cache needs no memory made ready."""
        if self.keys.device.type != "cpu":
            return self.num_blocks
        return max(1, LARGE_PAGE // (self.keys[0, 0].numel() * self.keys.itemsize))

    def back(self, layer: int, first: int, last: int) -> None:
        """Memory for blocks ``first`` .. ``last - 1`` of a layer, which the first write to them would wait for."""
        keys, values = self.layers[layer]
        back_pages(keys, first, last)
        if not self._latent:
            back_pages(values, first, last)

    def read_block(self, block: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """A copy of one block of all layers, keys and then values in plain order: uint8 [block_bytes]."""
        parts = [self.keys] if self._latent else [self.keys, self.values]
        return np.concatenate(
            [part[:, block].contiguous().flatten().view(torch.uint8).cpu().numpy() for part in parts]
        )

    def write_block(self, block: int, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        """Store what :meth:`read_block` gave, here or in another process, as this cache has it."""
        parts = [self.keys] if self._latent else [self.keys, self.values]
        for part, rows in zip(parts, torch.from_numpy(data).chunk(len(parts)), strict=True):
            part[:, block] = rows.view(part.dtype).view(part[:, block].shape).to(part.device)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token, all layers, as :meth:`read_rows` gives them."""
        return self.block_bytes // self.block_size

    @property
    def layout(self) -> str:
        """What one row is made of, for who reads rows of another cache: equal texts, equal meaning of the bytes."""
        layers, _, _, heads, width = self.keys.shape
        kind = f"latent {self.values.shape[-1]}" if self._latent else "keys, values"
        return f"{str(self.keys.dtype).removeprefix('torch.')} {layers}x{heads}x{width} {kind}"

    def read_rows(self, slots_T: _Slots) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """A copy of single tokens at flat slots, all layers, keys and then values: uint8 [T, row_bytes]. On a CPU."""
        blocks, offsets = np.divmod(slots_T, self.block_size)
        rows = [part[:, blocks, offsets].swapaxes(0, 1).reshape(len(slots_T), -1) for part in self._parts]
        return np.ascontiguousarray(np.concatenate(rows, axis=1)).view(np.uint8)

    def write_rows(self, slots_T: _Slots, rows: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
        """Store what :meth:`read_rows` gave, here or in another process."""
        blocks, offsets = np.divmod(slots_T, self.block_size)
        halves = np.split(rows, len(self._parts), axis=1)
        for part, half in zip(self._parts, halves, strict=True):
            layers, _, _, heads, width = part.shape
            tokens = np.ascontiguousarray(half).view(part.dtype).reshape(-1, layers, heads, width)
            part[:, blocks, offsets] = tokens.swapaxes(0, 1)

    @property
    def _parts(self) -> list[np.ndarray[Any, np.dtype[Any]]]:
        """Keys and values as numpy has them, as integers: it knows no bfloat16."""
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[self.keys.itemsize]
        parts = [self.keys] if self._latent else [self.keys, self.values]
        return [part.view(whole).numpy() for part in parts]

    def write(
        self, layer: int, key_TKH: torch.Tensor, value_TKH: torch.Tensor, slots_T: torch.Tensor
    ) -> None:
        """Store [T, Hkv, hd] keys and values at flat slots."""
        keys, values = self.layers[layer]
        store_rows(keys, key_TKH, slots_T)
        store_rows(values, value_TKH, slots_T)

    def write_latent(self, layer: int, entry_TKH: torch.Tensor, slots_T: torch.Tensor) -> None:
        """Store [T, 1, head_dim], latents with their rotary keys, at flat slots."""
        store_rows(self.layers[layer][0], entry_TKH, slots_T)
