"""Everything of a model that runs on the attention worker: all but the routed experts.

Shapes: T tokens, d hidden, V vocabulary. Activations are float32; weights are views on the checkpoint where its
dtype is the one asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from janus_kernels.ops import linear, rms_norm

from janus_models.checkpoint import FLOAT_DTYPES, Checkpoint
from janus_models.config import ModelConfig
from janus_models.errors import ConfigError
from janus_models.kvcache import BatchMeta, KvCache
from janus_models.layers import Attention, DenseFfn, SharedExpert, build_attention
from janus_models.loading import Loader
from janus_models.rope import RopeTable
from janus_models.weights import Weights

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
class _Layer:
    attention_norm: torch.Tensor
    attention: Attention
    moe_norm: torch.Tensor
    local: DenseFfn | SharedExpert | None  # a dense layer's whole FFN, an MoE layer's shared expert


class AttentionModel:
    """The dense parts: embedding, attention, norms, dense FFNs, shared experts, head. Not thread safe.

    ``dtype`` is that of weights and KV cache ("float32", "bfloat16", "float16"). Weights stored in
    another dtype are converted on loading; those already in it are views on the mapped file.
    ``quantize``, ``int8`` or ``int4``: the matrices of attention, dense FFNs and shared experts, as they are loaded.
    Raises CheckpointError when a tensor is absent or has another shape than config.json implies.
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
        self.dtype = torch_dtype(dtype)
        self.device = device
        self.moe_layers = list(config.moe_layers)
        self._moe_layers = frozenset(self.moe_layers)
        load = Loader(Weights(checkpoint, config.quantisation), self.dtype, device, quantize)
        names, width = config.family.tensors, (config.vocab_size, config.hidden)
        self._embedding = load(names.embedding, width)
        self._final_norm = load(names.final_norm, (config.hidden,))
        self._head = self._embedding if config.tied_embeddings else load(names.head, width)
        self._layers = [self._load_layer(layer, load) for layer in range(config.num_layers)]
        self._rope = RopeTable(config.rope, config.rope_dim, device)
        self._reserved = False

    def _load_layer(self, layer: int, load: Loader) -> _Layer:
        config, names = self.config, self.config.family.tensors
        local: DenseFfn | SharedExpert | None = None
        if layer not in self._moe_layers:
            local = DenseFfn(names.dense, load, layer, config.dense_hidden, config.hidden)
        elif config.moe.shared:
            local = SharedExpert(config, load, layer)
        return _Layer(
            attention_norm=load(names.attention_norm.format(layer=layer), (config.hidden,)),
            attention=build_attention(config, load, layer),
            moe_norm=load(names.moe_norm.format(layer=layer), (config.hidden,)),
            local=local,
        )

    def new_kv_cache(self, num_blocks: int, block_size: int = 16) -> KvCache:
        """A cache for ``num_blocks * block_size`` tokens of all sequences together."""
        config, latent = self.config, self.config.latent
        return KvCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self.dtype,
            num_kv_heads=config.num_kv_heads,
            head_dim=latent.rank + latent.rope_dim if latent else config.head_dim,
            latent_dim=latent.rank if latent else None,
            device=self.device,
        )

    def reserve(self, context: int) -> None:
        """No sequence gets longer than this: attention need not look, which on a GPU is a wait for it."""
        self._rope.ensure(context)
        self._reserved = True

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` has routed experts."""
        return layer in self._moe_layers

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> a fresh fp32 [T, d]."""
        return self._embedding.index_select(0, ids_T).float()

    def attention(self, layer: int, h_TD: torch.Tensor, batch: BatchMeta, kv: KvCache) -> None:
        """h += attention(norm(h)), in place; this step's keys and values are written to ``kv`` first."""
        weights = self._layers[layer]
        x_TD = rms_norm(h_TD, weights.attention_norm, self.config.norm_eps)
        if layer == 0 and not self._reserved and batch.context_lens.numel():
            self._rope.ensure(int(batch.context_lens.max()))
        h_TD.add_(weights.attention(x_TD, self._rope.cos, self._rope.sin, batch, kv))

    def has_local(self, layer: int) -> bool:
        """Whether :meth:`local_ffn` computes anything in ``layer``."""
        return self._layers[layer].local is not None

    def moe_norm(self, layer: int, h_TD: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The norm before the FFN: fp32 [T, d], into ``out`` when given. What goes to the MoE workers."""
        x_TD = rms_norm(h_TD, self._layers[layer].moe_norm, self.config.norm_eps)
        return x_TD if out is None else out.copy_(x_TD)

    def local_ffn(self, layer: int, x_TD: torch.Tensor) -> torch.Tensor | None:
        """What this worker adds to h after the FFN norm, fp32 [T, d].

        A dense layer's whole FFN; in an MoE layer the shared expert, to be computed while the routed ones are
        under way, or None where the model has none.
        """
        local = self._layers[layer].local
        return None if local is None else local(x_TD)

    def logits(self, h_ND: torch.Tensor) -> torch.Tensor:
        """Final norm and head: fp32 [N, d] -> fp32 [N, V]."""
        return linear(rms_norm(h_ND, self._final_norm, self.config.norm_eps), self._head)
