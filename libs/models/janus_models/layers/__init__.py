"""Parts of a decoder layer that run on the attention worker: attention of each kind, dense and shared FFNs."""

from __future__ import annotations

from janus_models.config import ModelConfig
from janus_models.layers.base import Attention, Load
from janus_models.layers.ffn import DenseFfn, SharedExpert
from janus_models.layers.gqa import GroupedAttention
from janus_models.layers.mla import LatentAttention

__all__ = ["Attention", "DenseFfn", "Load", "SharedExpert", "build_attention"]


def build_attention(config: ModelConfig, load: Load, layer: int) -> Attention:
    """The attention of decoder layer ``layer``, of the kind that the model has."""
    return (LatentAttention if config.latent else GroupedAttention)(config, load, layer)
