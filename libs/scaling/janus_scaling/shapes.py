"""Model shapes: what a step of a model has to read, compute and send. From a config.json or built in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from janus_models.config import ModelConfig, load_config

from janus_scaling.checks import ScalingError, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Counts of weights and of cached values; bytes follow from ``weight_bytes`` and ``cache_bytes``."""

    name: str
    layers: int
    """Decoder layers."""
    moe_layers: int
    """Those with routed experts."""
    hidden: int
    num_experts: int
    """E, routed experts of a MoE layer."""
    top_k: int
    expert_hidden: int
    attention_weights: int
    """Weights of one layer's attention."""
    shared_weights: int
    """Weights of one MoE layer's shared experts."""
    dense_weights: int
    """Weights of the dense FFNs of all layers that are not MoE layers."""
    vocab: int
    cached_values: int
    """Numbers in the KV cache per token and layer."""
    score_flops: float
    """FLOPs of attention per token and cached token, per layer (scores and values)."""
    weight_bytes: float = 2.0
    """Bytes of a weight."""
    cache_bytes: float = 2.0
    """Bytes of a number in the KV cache and of a hidden state's element on the wire."""

    def __post_init__(self) -> None:
        for field in ("layers", "moe_layers", "hidden", "num_experts", "top_k", "expert_hidden", "vocab"):
            whole(f"{self.name}.{field}", getattr(self, field), 1, 1 << 31)
        if self.moe_layers > self.layers:
            raise ScalingError(f"{self.name}.moe_layers", self.moe_layers, f"1..{self.layers}")
        if self.top_k > self.num_experts:
            raise ScalingError(f"{self.name}.top_k", self.top_k, f"1..{self.num_experts}")

    @property
    def expert_weights(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden * self.expert_hidden

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert in one layer."""
        return self.expert_weights * self.weight_bytes

    @property
    def slot_bytes(self) -> float:
        """Bytes that a slot takes on an instance, all MoE layers together."""
        return self.expert_bytes * self.moe_layers

    @property
    def attention_bytes(self) -> float:
        """Bytes of everything but the routed experts: what each attention worker holds."""
        per_layer = self.layers * self.attention_weights + self.moe_layers * self.shared_weights
        return (per_layer + self.dense_weights + 2 * self.vocab * self.hidden) * self.weight_bytes

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of the KV cache per token, all layers together."""
        return self.layers * self.cached_values * self.cache_bytes

    @property
    def row_bytes(self) -> float:
        """Bytes of one token's hidden state on the wire."""
        return self.hidden * self.cache_bytes

    def slots(self, memory: float) -> int:
        """C, slots of each layer that fit into ``memory`` bytes; at most E."""
        return min(self.num_experts, int(memory // self.slot_bytes))


def from_config(config: ModelConfig, *, weight_bytes: float = 2.0) -> ModelShape:
    """Shape of a checkpoint. Biases and norms are left out; they are of no weight."""
    hidden, heads = config.hidden, config.num_heads
    if latent := config.latent:
        nope, rope, rank = latent.plain_dim, latent.rope_dim, latent.rank
        query_in = latent.query_rank or hidden
        weights = (hidden * latent.query_rank if latent.query_rank else 0) + query_in * heads * (nope + rope)
        weights += hidden * (rank + rope) + rank * heads * (nope + latent.value_dim)
        weights += heads * latent.value_dim * hidden
        scores = 2.0 * heads * (2 * rank + rope)  # absorbed: every head against the one latent
    else:
        head = config.head_dim
        weights = 2 * hidden * head * (heads + config.num_kv_heads)
        scores = 4.0 * heads * head
    shared = config.moe.shared
    moe_layers = len(config.moe.layers)
    return ModelShape(
        name=config.directory.name or config.model_type,
        layers=config.num_layers,
        moe_layers=moe_layers,
        hidden=hidden,
        num_experts=config.moe.num_experts,
        top_k=config.moe.top_k,
        expert_hidden=config.moe.expert_hidden,
        attention_weights=weights,
        shared_weights=3 * hidden * shared.hidden if shared else 0,
        dense_weights=3 * hidden * config.dense_hidden * (config.num_layers - moe_layers),
        vocab=config.vocab_size,
        cached_values=config.kv_values_per_token // config.num_layers,
        score_flops=scores,
        weight_bytes=weight_bytes,
    )


def _deepseek(name: str, experts: int, top_k: int, expert_hidden: int, shared_hidden: int) -> ModelShape:
    """DeepSeek-V2 (its config.json: 128 heads, latent 512 + 64, query rank 1536) with experts of another kind."""
    hidden = 5120
    attention = hidden * 1536 + 1536 * 128 * 192 + hidden * 576 + 512 * 128 * 256 + 128 * 128 * hidden
    return ModelShape(
        name=name, layers=60, moe_layers=59, hidden=hidden, num_experts=experts, top_k=top_k,
        expert_hidden=expert_hidden, attention_weights=attention, shared_weights=3 * hidden * shared_hidden,
        dense_weights=3 * hidden * 12288, vocab=102400, cached_values=576, score_flops=2.0 * 128 * 1088,
    )  # fmt: skip


MODELS = {
    "deepseek-v2": _deepseek("deepseek-v2", 160, 6, 1536, 3072),
    # Qwen3-235B-A22B, its config.json: 64 heads, 4 KV heads, head 128.
    "qwen3-235b": ModelShape(
        name="qwen3-235b", layers=94, moe_layers=94, hidden=4096, num_experts=128, top_k=8, expert_hidden=1536,
        attention_weights=2 * 4096 * 128 * 68, shared_weights=0, dense_weights=0, vocab=151936, cached_values=1024,
        score_flops=4.0 * 64 * 128,
    ),
    # The paper's enlarged models: it gives experts, top-k and expert width; the rest is DeepSeek-V2's, two shared
    # experts as wide as the routed ones included.
    "scaled-ds-1": _deepseek("scaled-ds-1", 160, 8, 1024, 2048),
    "scaled-ds-2": _deepseek("scaled-ds-2", 200, 8, 1536, 3072),
}  # fmt: skip
"""Built-in shapes by name."""


def shape(model: str) -> ModelShape:
    """A built-in shape by name, or that of a checkpoint directory. Raises ScalingError, ConfigError."""
    if model in MODELS:
        return MODELS[model]
    if not Path(model).is_dir():
        raise ScalingError("model", repr(model), f"{', '.join(MODELS)}, or the directory of a checkpoint")
    return from_config(load_config(model))
