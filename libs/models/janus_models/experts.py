"""What runs on the MoE worker: routers and routed experts.

``moe_layer`` counts MoE layers from 0 (the layout's numbering), not decoder layers.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from janus_kernels.ops import Activation, ExpertWeights, RoutingSpec, quantize_expert, route, router_logits

from janus_models.checkpoint import Checkpoint
from janus_models.config import ModelConfig
from janus_models.decoder import torch_dtype
from janus_models.errors import ConfigError
from janus_models.expert_store import expert_store
from janus_models.weights import Weights

__all__ = ["ExpertModel"]

_GROUP = 32  # int4 weights that share a scale


class ExpertModel:
    """Routers, loaded at once, and experts, loaded when asked for. Not thread safe.

    Opening checks the name, shape and dtype of every expert tensor without touching its bytes; raises
    CheckpointError. ``dtype`` is the widest that weights may have: those stored in it, or narrower, stay
    views on the mapped file (arithmetic is float32 anyway), wider ones are converted to private copies, and so
    are quantised ones and those that lie transposed in the file. ``quantize``: ``int8`` or ``int4`` experts,
    made from these weights as they are loaded.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
        quantize: str | None = None,
    ) -> None:
        self.config = config
        self.quantize = quantize
        if quantize == "int4" and (config.hidden % _GROUP or config.moe.expert_hidden % _GROUP):
            raise ConfigError(
                "int4 experts need a hidden size and an expert width that are multiples of their groups",
                field="--expert-dtype",
                value=f"int4 with {config.hidden} and {config.moe.expert_hidden}",
                allowed=f"multiples of {_GROUP}",
                next_step="Use int8.",
            )
        self.dtype = torch_dtype(dtype)
        self.device = device
        self._weights = Weights(checkpoint, config.quantisation)
        self._store = expert_store(config, self._weights, self.dtype, device)
        checked = max(self._store.check(layer) for layer in config.moe_layers)
        self.bytes_per_expert: int = self._quantized_bytes() if quantize else checked
        """Bytes of one expert once loaded, the largest."""
        names, shape = config.family.tensors, (config.moe.num_experts,)
        self._routers = self._each_layer(names.router, (*shape, config.hidden))
        self._router_biases = self._each_layer(names.router_bias, shape)
        self._corrections = self._each_layer(names.correction_bias, shape)
        self._spec = RoutingSpec(top_k=config.moe.top_k, **asdict(config.moe.router))
        self.activation = Activation(**asdict(config.moe.activation))
        """What lies between an expert's first products and its last."""

    def _each_layer(self, template: str, shape: tuple[int, ...]) -> list[torch.Tensor | None]:
        return [
            self._weights.tensor(template.format(layer=layer), shape).to(
                device=self.device, dtype=torch.float32
            )
            if template
            else None
            for layer in self.config.moe_layers
        ]

    @property
    def num_layers(self) -> int:
        """Number of MoE layers."""
        return len(self.config.moe_layers)

    def gate(self, moe_layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The router: hidden states fp32 [T, d] -> expert ids int32 [T, k], best first, and weights fp64 [T, k]."""
        weight = self._routers[moe_layer]
        assert weight is not None
        logits_TE = router_logits(x_TD, weight, self._router_biases[moe_layer])
        return route(logits_TE, self._spec, self._corrections[moe_layer])

    def load(self, moe_layer: int, expert: int) -> ExpertWeights:
        """One expert: gate [f, d], up [f, d], down [d, f]; a view's pages are read when they are first used."""
        weights = self._store.load(self.config.moe_layers[moe_layer], expert)
        return quantize_expert(weights, self.quantize, _GROUP) if self.quantize else weights

    def _quantized_bytes(self) -> int:
        """Of the weights and scales of one expert."""
        d, f = self.config.hidden, self.config.moe.expert_hidden
        if self.quantize == "int8":
            return 3 * d * f + 4 * (2 * f + d)
        return 3 * d * f // 2 + 4 * 3 * d * f // _GROUP
