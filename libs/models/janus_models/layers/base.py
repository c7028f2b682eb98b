"""What an attention layer is to the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from janus_models.kvcache import BatchMeta, KvCache

Load = Callable[[str, tuple[int, ...]], torch.Tensor]
"""Reads a tensor of this name and shape, in the serving dtype, on the device."""


class Attention(Protocol):
    """One layer's attention with its projections."""

    def __call__(
        self, x_TD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: BatchMeta, kv: KvCache
    ) -> torch.Tensor:
        """Normed fp32 [T, d] -> fp32 [T, d]; this step's keys and values are written to ``kv`` first.

        cos and sin: fp32 [positions, rope width / 2].
        """
        ...
