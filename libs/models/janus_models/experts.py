"""What runs on the MoE worker: routers and routed experts.

``moe_layer`` counts MoE layers from 0 (the layout's numbering), not decoder layers.
"""

from __future__ import annotations

import torch
from janus_kernels.ops import ExpertWeights, RoutingSpec

from janus_models.checkpoint import Checkpoint, TensorEntry
from janus_models.config import ModelConfig
from janus_models.decoder import torch_dtype

__all__ = ["ExpertModel"]


class ExpertModel:
    """Routers, loaded at once, and experts, loaded when asked for. Not thread safe.

    Opening checks the name, shape and dtype of every expert tensor without touching its bytes; raises
    CheckpointError. ``dtype`` is the widest that weights may have: those stored in it, or narrower, stay
    views on the mapped file (arithmetic is float32 anyway), wider ones are converted to private copies.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.dtype = torch_dtype(dtype)
        self.device = device
        self._checkpoint = checkpoint
        d, f = config.hidden, config.moe.expert_hidden
        self._shapes = ((f, d), (f, d), (d, f))
        sizes = [
            self._expert_bytes(moe_layer, expert)
            for moe_layer in range(self.num_layers)
            for expert in range(config.moe.num_experts)
        ]
        self.bytes_per_expert: int = max(sizes)
        self._routers = [
            checkpoint.tensor(
                config.family.tensors.router.format(layer=layer), (config.moe.num_experts, d)
            ).to(device=device, dtype=torch.float32)
            for layer in config.moe_layers
        ]
        self._spec = RoutingSpec(
            top_k=config.moe.top_k, scoring=config.moe.scoring, renormalize=config.moe.renormalize
        )

    @property
    def num_layers(self) -> int:
        """Number of MoE layers."""
        return len(self.config.moe_layers)

    def router_weight(self, moe_layer: int) -> torch.Tensor:
        """fp32 [E, d]."""
        return self._routers[moe_layer]

    def routing_spec(self, moe_layer: int) -> RoutingSpec:
        """How a token's experts are chosen from its router logits."""
        del moe_layer  # the same in every layer of the families so far
        return self._spec

    def bias(self, moe_layer: int) -> torch.Tensor | None:
        """fp32 [E] added to scores for choosing only; None in families without one."""
        del moe_layer
        return None

    def load(self, moe_layer: int, expert: int) -> ExpertWeights:
        """One expert: gate [f, d], up [f, d], down [d, f]; its pages are read when they are first used."""
        gate, up, down = (
            self._weight(name, shape)
            for name, shape in zip(self._names(moe_layer, expert), self._shapes, strict=True)
        )
        return ExpertWeights(gate=gate, up=up, down=down)

    def _names(self, moe_layer: int, expert: int) -> tuple[str, str, str]:
        names, layer = self.config.family.tensors, self.config.moe_layers[moe_layer]
        return (
            names.expert_gate.format(layer=layer, expert=expert),
            names.expert_up.format(layer=layer, expert=expert),
            names.expert_down.format(layer=layer, expert=expert),
        )

    def _expert_bytes(self, moe_layer: int, expert: int) -> int:
        entries: list[TensorEntry] = [
            self._checkpoint.check(name, shape)
            for name, shape in zip(self._names(moe_layer, expert), self._shapes, strict=True)
        ]
        return sum(entry.nbytes for entry in entries)

    def _weight(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        view = self._checkpoint.tensor(name, shape)
        narrowed = view if view.itemsize <= self.dtype.itemsize else view.to(self.dtype)
        return narrowed.to(self.device)
