"""Weights by name as float tensors, whether the checkpoint stores them plain or as FP8 blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from janus_models._safetensors import TensorEntry, bad_file
from janus_models.checkpoint import FLOAT_DTYPES, Checkpoint
from janus_models.specs import QuantisationSpec

if TYPE_CHECKING:
    import torch

FP8 = {"F8_E4M3": "float8_e4m3fn"}


class Weights:
    """Reads what ``config.json`` says is there. Raises CheckpointError naming file, tensor and shapes."""

    def __init__(self, checkpoint: Checkpoint, quantisation: QuantisationSpec | None) -> None:
        self.checkpoint = checkpoint
        self._block = quantisation.block if quantisation else None

    def check(self, name: str, shape: Sequence[int]) -> TensorEntry:
        """The entry of a weight of this shape, its scales checked too. Reads no data."""
        if self._block is None or self.checkpoint.entry(name).dtype not in FP8:
            return self.checkpoint.check(name, shape)
        entry = self.checkpoint.check(name, shape, FP8)
        if len(shape) != 2:
            raise bad_file(
                entry.file, f"{name} is FP8 of shape {list(shape)}", "Only matrices can be stored in blocks"
            )
        self.checkpoint.check(_scales(name), self._grid(shape))
        return entry

    def is_quantised(self, name: str) -> bool:
        """Whether loading it makes a new tensor instead of a view."""
        return self._block is not None and self.checkpoint.entry(name).dtype in FP8

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """A view on the file in its own dtype; of an FP8 weight its values in fp32."""
        if self._block is None or not self.is_quantised(name):
            return self.checkpoint.tensor(name, shape)
        from janus_models.quantised import from_fp8

        self.check(name, shape)
        stored = self.checkpoint.tensor(name, shape, FP8)
        return from_fp8(stored, self.checkpoint.tensor(_scales(name), self._grid(shape)), self._block)

    def loaded_bytes(self, name: str, shape: Sequence[int], itemsize: int) -> int:
        """Bytes of the weight once loaded for arithmetic of at most ``itemsize`` bytes a number."""
        entry = self.check(name, shape)
        count = entry.nbytes // (1 if entry.dtype in FP8 else ITEM_BYTES[entry.dtype])
        return count * (itemsize if entry.dtype in FP8 else min(itemsize, ITEM_BYTES[entry.dtype]))

    def _grid(self, shape: Sequence[int]) -> tuple[int, int]:
        assert self._block is not None
        return -(-shape[0] // self._block[0]), -(-shape[1] // self._block[1])


ITEM_BYTES = {name: 4 if name == "F32" else 2 for name in FLOAT_DTYPES}


def _scales(name: str) -> str:
    return f"{name}_scale_inv"
