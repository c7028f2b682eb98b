"""What runs on the MoE worker: routers and routed experts.

``moe_layer`` counts MoE layers from 0 (the layout's numbering), not decoder layers.
"""

from __future__ import annotations

import torch
from janus_kernels.ops import ExpertWeights, RoutingSpec, route, router_logits

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
        names, shape = config.family.tensors, (config.moe.num_experts,)
        self._routers = self._each_layer(names.router, (*shape, d))
        self._corrections = self._each_layer(names.correction_bias, shape) if names.correction_bias else None
        router = config.moe.router
        self._spec = RoutingSpec(
            top_k=config.moe.top_k,
            scoring=router.scoring,
            renormalize=router.renormalize,
            scale=router.scale,
            groups=router.groups,
            groups_kept=router.groups_kept,
            group_score=router.group_score,
        )

    def _each_layer(self, template: str, shape: tuple[int, ...]) -> list[torch.Tensor]:
        return [
            self._checkpoint.tensor(template.format(layer=layer), shape).to(
                device=self.device, dtype=torch.float32
            )
            for layer in self.config.moe_layers
        ]

    @property
    def num_layers(self) -> int:
        """Number of MoE layers."""
        return len(self.config.moe_layers)

    def gate(self, moe_layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The router: hidden states fp32 [T, d] -> expert ids int32 [T, k], best first, and weights fp64 [T, k]."""
        logits_TE = router_logits(x_TD, self._routers[moe_layer])
        corrections = self._corrections
        return route(logits_TE, self._spec, None if corrections is None else corrections[moe_layer])

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
