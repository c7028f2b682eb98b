"""FFNs that run on the attention worker: of dense layers, and the shared expert of MoE layers."""

from __future__ import annotations

import math

import torch
from janus_kernels.ops import ExpertSet, ExpertWeights, QuantizedWeight, expert_ffn, linear, swiglu_ffn

from janus_models.config import ModelConfig
from janus_models.layers.base import Load


class DenseFfn:
    """SwiGLU: fp32 [T, d] -> fp32 [T, d]. ``template`` names its tensors by {layer} and {part}."""

    def __init__(self, template: str, load: Load, layer: int, hidden: int, width: int) -> None:
        shapes = {"gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
        parts = [
            load.matrix(template.format(layer=layer, part=part), shape) for part, shape in shapes.items()
        ]
        self._plain = [part for part in parts if isinstance(part, torch.Tensor)]
        self._expert: ExpertSet | None = None
        if not self._plain:
            gate, up, down = (part for part in parts if isinstance(part, QuantizedWeight))
            self._expert = ExpertSet({
                0: ExpertWeights(gate.data, up.data, down.data, scales=(gate.scale, up.scale, down.scale))
            })  # fmt: skip

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """fp32 [T, d] -> fp32 [T, d]."""
        if self._expert is None:
            return swiglu_ffn(x_TD, *self._plain)
        # The one expert that every token goes to.
        ids_T1 = torch.zeros(len(x_TD), 1, dtype=torch.int32)
        weights_T1 = torch.ones(len(x_TD), 1, dtype=torch.float64)
        out_TD = torch.empty(x_TD.shape, dtype=torch.float64)
        expert_ffn(x_TD, ids_T1, weights_T1, ids_T1 == 0, self._expert, out_TD)
        return out_TD.float()


class SharedExpert:
    """What every token goes through beside its routed experts."""

    def __init__(self, config: ModelConfig, load: Load, layer: int) -> None:
        names, spec = config.family.tensors, config.moe.shared
        assert spec is not None
        self._ffn = DenseFfn(names.shared, load, layer, spec.hidden, config.hidden)
        self._gate = load(names.shared_gate.format(layer=layer), (1, config.hidden)) if spec.gated else None

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """fp32 [T, d] -> fp32 [T, d]."""
        y_TD = self._ffn(x_TD)
        return y_TD if self._gate is None else y_TD * _sigmoid(linear(x_TD, self._gate))


def _sigmoid(x_T1: torch.Tensor) -> torch.Tensor:
    if x_T1.device.type != "cpu":
        return torch.sigmoid(x_T1)
    # torch's vector path and its remainder path round differently, so that a token's bits would depend on where in
    # the batch it stands.
    values = [1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for (x,) in x_T1.tolist()]
    return torch.tensor(values, dtype=torch.float32)[:, None]
