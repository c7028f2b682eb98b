"""How checkpoints store routed experts: a tensor per expert and projection, or one of all experts of a layer."""

from __future__ import annotations

from typing import Protocol

import torch
from janus_kernels.ops import ExpertWeights

from janus_models.checkpoint import Checkpoint
from janus_models.config import ModelConfig
from janus_models.quantised import from_mxfp4
from janus_models.weights import ITEM_BYTES, Weights

_BYTES = {"U8": "uint8"}


class ExpertStore(Protocol):
    """Experts of one checkpoint; ``layer`` is the decoder layer."""

    def check(self, layer: int) -> int:
        """Check names, shapes and dtypes of a layer's experts without reading them; bytes of one once loaded."""
        ...

    def load(self, layer: int, expert: int) -> ExpertWeights:
        """One expert: gate [f, d], up [f, d], down [d, f]."""
        ...


def expert_store(config: ModelConfig, weights: Weights, dtype: torch.dtype, device: str) -> ExpertStore:
    """The store of the checkpoint's kind; weights wider than ``dtype`` become private copies in it."""
    if not config.family.tensors.packed_experts:
        return _Separate(config, weights, dtype, device)
    if config.quantisation and config.quantisation.method == "mxfp4":
        return _Mxfp4(config, weights.checkpoint, device)
    return _Packed(config, weights.checkpoint, dtype, device)


class _Separate:
    def __init__(self, config: ModelConfig, weights: Weights, dtype: torch.dtype, device: str) -> None:
        self._config, self._weights, self._dtype, self._device = config, weights, dtype, device
        d, f = config.hidden, config.moe.expert_hidden
        self._shapes = ((f, d), (f, d), (d, f))

    def check(self, layer: int) -> int:
        return max(
            sum(
                self._weights.loaded_bytes(name, shape, self._dtype.itemsize)
                for name, shape in zip(self._names(layer, expert), self._shapes, strict=True)
            )
            for expert in range(self._config.moe.num_experts)
        )

    def load(self, layer: int, expert: int) -> ExpertWeights:
        gate, up, down = (
            _narrowed(self._weights.tensor(name, shape), self._dtype).to(self._device)
            for name, shape in zip(self._names(layer, expert), self._shapes, strict=True)
        )
        return ExpertWeights(gate=gate, up=up, down=down)

    def _names(self, layer: int, expert: int) -> tuple[str, str, str]:
        names = self._config.family.tensors
        return (
            names.expert_gate.format(layer=layer, expert=expert),
            names.expert_up.format(layer=layer, expert=expert),
            names.expert_down.format(layer=layer, expert=expert),
        )


class _Packed:
    """gate_up_proj [E, d, 2f] with gate and up in turns, down_proj [E, f, d], biases [E, 2f] and [E, d] (gpt_oss).

    Columns are rows here, so each expert is copied when it is loaded.
    """

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        self._names, self._checkpoint, self._device = config.family.tensors, checkpoint, device
        self._dtype = dtype
        self._sizes = config.moe.num_experts, config.hidden, config.moe.expert_hidden

    def check(self, layer: int) -> int:
        experts, d, f = self._sizes
        name = self._name(layer, "gate_up_proj")
        entry = self._checkpoint.check(name, (experts, d, 2 * f))
        self._checkpoint.check(self._name(layer, "down_proj"), (experts, f, d))
        self._check_biases(layer)
        return 3 * d * f * min(self._dtype.itemsize, ITEM_BYTES[entry.dtype]) + 4 * (2 * f + d)

    def load(self, layer: int, expert: int) -> ExpertWeights:
        experts, d, f = self._sizes
        gate_up = self._checkpoint.tensor(self._name(layer, "gate_up_proj"), (experts, d, 2 * f))[expert].T
        down = self._checkpoint.tensor(self._name(layer, "down_proj"), (experts, f, d))[expert].T
        return self._expert(layer, expert, gate_up, down)

    def _name(self, layer: int, part: str) -> str:
        return self._names.packed_experts.format(layer=layer, part=part)

    def _check_biases(self, layer: int) -> None:
        experts, d, f = self._sizes
        self._checkpoint.check(self._name(layer, "gate_up_proj_bias"), (experts, 2 * f))
        self._checkpoint.check(self._name(layer, "down_proj_bias"), (experts, d))

    def _expert(self, layer: int, expert: int, gate_up: torch.Tensor, down: torch.Tensor) -> ExpertWeights:
        """From gate_up [2f, d] and down [d, f], any strides."""
        bias = self._checkpoint.tensor(self._name(layer, "gate_up_proj_bias"))[expert].float()
        down_bias = self._checkpoint.tensor(self._name(layer, "down_proj_bias"))[expert].float()
        return ExpertWeights(
            gate=self._own(gate_up[::2]),
            up=self._own(gate_up[1::2]),
            down=self._own(down),
            gate_bias=bias[::2].contiguous().to(self._device),
            up_bias=bias[1::2].contiguous().to(self._device),
            down_bias=down_bias.to(self._device),
        )

    def _own(self, weight: torch.Tensor) -> torch.Tensor:
        return _narrowed(weight, self._dtype).contiguous().to(self._device)


class _Mxfp4(_Packed):
    """gate_up_proj_blocks [E, 2f, d/32, 16] and down_proj_blocks [E, d, f/32, 16] with _scales (gpt_oss as published).

    Loaded as bfloat16, which holds them exactly.
    """

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, device: str) -> None:
        super().__init__(config, checkpoint, torch.bfloat16, device)

    def check(self, layer: int) -> int:
        _, d, f = self._sizes
        for part, shape in self._blocks().items():
            self._checkpoint.check(self._name(layer, f"{part}_blocks"), shape, _BYTES)
            self._checkpoint.check(self._name(layer, f"{part}_scales"), shape[:3], _BYTES)
        self._check_biases(layer)
        return 3 * d * f * 2 + 4 * (2 * f + d)

    def load(self, layer: int, expert: int) -> ExpertWeights:
        gate_up, down = (
            from_mxfp4(
                self._checkpoint.tensor(self._name(layer, f"{part}_blocks"), shape, _BYTES)[expert],
                self._checkpoint.tensor(self._name(layer, f"{part}_scales"), shape[:3], _BYTES)[expert],
            )
            for part, shape in self._blocks().items()
        )
        return self._expert(layer, expert, gate_up, down)

    def _blocks(self) -> dict[str, tuple[int, ...]]:
        experts, d, f = self._sizes
        return {"gate_up_proj": (experts, 2 * f, d // 32, 16), "down_proj": (experts, d, f // 32, 16)}


def _narrowed(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight if weight.itemsize <= dtype.itemsize else weight.to(dtype)
