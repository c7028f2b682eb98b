"""Everything of a model that runs on the attention worker: all but the routed experts.

Shapes: T tokens, d hidden, H query heads, K key/value heads, h head dimension, V vocabulary.
Activations are float32; weights are views on the checkpoint where its dtype is the one asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from janus_kernels.ops import apply_rotary, linear, paged_attention, rms_norm, swiglu_ffn

from janus_models.checkpoint import FLOAT_DTYPES, Checkpoint
from janus_models.config import ModelConfig
from janus_models.errors import ConfigError
from janus_models.kvcache import BatchMeta, KvCache
from janus_models.rope import RopeTable

__all__ = ["AttentionModel", "BatchMeta", "KvCache", "torch_dtype"]


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a setting. Raises ConfigError listing the allowed ones."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name not in FLOAT_DTYPES.values():
        raise ConfigError(
            "unknown dtype",
            field="dtype",
            value=name,
            allowed=", ".join(FLOAT_DTYPES.values()),
            reason="BAD_FIELD",
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dense:
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    attention_norm: torch.Tensor
    weights: dict[str, torch.Tensor]  # q, k, v, o
    biases: dict[str, torch.Tensor]  # the same, empty when the model has none
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    moe_norm: torch.Tensor
    dense: _Dense | None


class AttentionModel:
    """The dense parts: embedding, attention, norms, dense FFNs, head. Not thread safe.

    ``dtype`` is that of weights and KV cache ("float32", "bfloat16", "float16"). Weights stored in
    another dtype are converted on loading; those already in it are views on the mapped file.
    Raises CheckpointError when a tensor is absent or has another shape than config.json implies.
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
        self.moe_layers = list(config.moe_layers)
        self._moe_layers = frozenset(self.moe_layers)
        self._checkpoint = checkpoint
        names, width = config.family.tensors, (config.vocab_size, config.hidden)
        self._embedding = self._load(names.embedding, width)
        self._final_norm = self._load(names.final_norm, (config.hidden,))
        self._head = self._embedding if config.tied_embeddings else self._load(names.head, width)
        self._layers = [self._load_layer(layer) for layer in range(config.num_layers)]
        self._rope = RopeTable(config.rope, config.head_dim, device)
        self._scale = config.head_dim**-0.5

    def _load(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._checkpoint.tensor(name, shape).to(device=self.device, dtype=self.dtype)

    def _load_layer(self, layer: int) -> _Layer:
        config, names = self.config, self.config.family.tensors
        d, query, keys = (
            config.hidden,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        shapes = {"q": (query, d), "k": (keys, d), "v": (keys, d), "o": (d, query)}
        projections = {part: names.projection.format(layer=layer, part=part) for part in shapes}
        norm_shape = (config.head_dim,)
        dense = None
        if layer not in self._moe_layers:
            inner = config.dense_hidden
            dense = _Dense(
                gate=self._load(names.dense.format(layer=layer, part="gate"), (inner, d)),
                up=self._load(names.dense.format(layer=layer, part="up"), (inner, d)),
                down=self._load(names.dense.format(layer=layer, part="down"), (d, inner)),
            )
        qk_norm = config.family.qk_norm
        return _Layer(
            attention_norm=self._load(names.attention_norm.format(layer=layer), (d,)),
            weights={part: self._load(name + ".weight", shapes[part]) for part, name in projections.items()},
            biases={part: self._load(name + ".bias", shapes[part][:1]) for part, name in projections.items()}
            if config.attention_bias
            else {},
            query_norm=self._load(names.query_norm.format(layer=layer), norm_shape) if qk_norm else None,
            key_norm=self._load(names.key_norm.format(layer=layer), norm_shape) if qk_norm else None,
            moe_norm=self._load(names.moe_norm.format(layer=layer), (d,)),
            dense=dense,
        )

    def new_kv_cache(self, num_blocks: int, block_size: int = 16) -> KvCache:
        """A cache for ``num_blocks * block_size`` tokens of all sequences together."""
        config = self.config
        return KvCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self.dtype,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            device=self.device,
        )

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` has routed experts."""
        return layer in self._moe_layers

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> a fresh fp32 [T, d]."""
        return self._embedding.index_select(0, ids_T).float()

    def attention(self, layer: int, h_TD: torch.Tensor, batch: BatchMeta, kv: KvCache) -> None:
        """h += attention(norm(h)), in place; this step's keys and values are written to ``kv`` first."""
        config, weights = self.config, self._layers[layer]
        x_TD = rms_norm(h_TD, weights.attention_norm, config.norm_eps)
        query = self._project(weights, "q", x_TD).unflatten(1, (config.num_heads, config.head_dim))
        key = self._project(weights, "k", x_TD).unflatten(1, (config.num_kv_heads, config.head_dim))
        value = self._project(weights, "v", x_TD).unflatten(1, (config.num_kv_heads, config.head_dim))
        if weights.query_norm is not None and weights.key_norm is not None:
            query = rms_norm(query, weights.query_norm, config.norm_eps)
            key = rms_norm(key, weights.key_norm, config.norm_eps)
        cos, sin = self._rope.cos, self._rope.sin
        if layer == 0 and batch.context_lens.numel():
            cos, sin = self._rope.ensure(int(batch.context_lens.max()))
        query, key = (
            apply_rotary(query, cos, sin, batch.positions),
            apply_rotary(key, cos, sin, batch.positions),
        )
        kv.write(layer, key, value, batch.slots)
        mixed_TQ = paged_attention(
            query,
            kv.keys[layer],
            kv.values[layer],
            query_starts=batch.query_starts,
            context_lens=batch.context_lens,
            block_tables=batch.block_tables,
            scale=self._scale,
            window=config.sliding_window,
        ).flatten(1)
        h_TD.add_(self._project(weights, "o", mixed_TQ))

    @staticmethod
    def _project(layer: _Layer, part: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, layer.weights[part], layer.biases.get(part))

    def moe_norm(self, layer: int, h_TD: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The norm before the FFN: fp32 [T, d], into ``out`` when given. What goes to the MoE workers."""
        x_TD = rms_norm(h_TD, self._layers[layer].moe_norm, self.config.norm_eps)
        return x_TD if out is None else out.copy_(x_TD)

    def local_ffn(self, layer: int, x_TD: torch.Tensor) -> torch.Tensor | None:
        """What this worker adds to h after the FFN norm: a dense layer's whole FFN, None in others."""
        dense = self._layers[layer].dense
        return None if dense is None else swiglu_ffn(x_TD, dense.gate, dense.up, dense.down)

    def logits(self, h_ND: torch.Tensor) -> torch.Tensor:
        """Final norm and head: fp32 [N, d] -> fp32 [N, V]."""
        return linear(rms_norm(h_ND, self._final_norm, self.config.norm_eps), self._head)
