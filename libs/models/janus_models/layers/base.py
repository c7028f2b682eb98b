"""What an attention layer is to the decoder."""

from __future__ import annotations

from typing import Protocol

import torch
from janus_kernels.ops import QuantizedWeight

from janus_models.kvcache import BatchMeta, KvCache

Matrix = torch.Tensor | QuantizedWeight


class Load(Protocol):
    """Reads weights by name, checking their shape, in the serving dtype, on the device."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Any tensor."""
        ...

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """What a linear layer multiplies by: quantised where that was asked for."""
        ...


class Attention(Protocol):
    """One layer's attention with its projections."""

    def __call__(
        self, x_TD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: BatchMeta, kv: KvCache
    ) -> torch.Tensor:
        """Normed fp32 [T, d] -> fp32 [T, d]; this step's keys and values are written to ``kv`` first.

        cos and sin: fp32 [positions, rope width / 2].
        """
        ...
