"""``config.json`` of a checkpoint, checked and reduced to what serving needs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from janus_models._fields import Fields, read_json
from janus_models.errors import ConfigError
from janus_models.families import FAMILIES, PLANNED
from janus_models.families.base import Family

__all__ = ["ModelConfig", "MoeSpec", "RopeSpec", "load_config"]

ROPE_KINDS = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding, rotate-half layout, over the whole head dimension."""

    kind: str = "default"
    """One of ``default``, ``linear``, ``yarn``, ``llama3``."""
    theta: float = 10_000.0
    """Base of the wavelengths."""
    factor: float = 1.0
    """Context extension factor of the scaled kinds."""
    original_max_positions: int = 0
    """Context length before extension (yarn, llama3)."""
    attention_factor: float | None = None
    """yarn: factor on cos and sin; None derives it from ``factor``."""
    beta_fast: float = 32.0
    """yarn: rotations above which a dimension is left alone."""
    beta_slow: float = 1.0
    """yarn: rotations below which a dimension is fully interpolated."""
    mscale: float = 0.0
    """yarn: numerator of the attention factor when both mscales are set."""
    mscale_all_dim: float = 0.0
    """yarn: denominator of the attention factor when both mscales are set."""
    truncate: bool = True
    """yarn: round the correction range to whole dimensions."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than original_max_positions / this are divided by factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than original_max_positions / this are left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """The routed experts. Every MoE layer of a model has the same shape."""

    num_experts: int
    """Routed experts per MoE layer, E."""
    top_k: int
    """Experts per token, k."""
    expert_hidden: int
    """Inner width of one expert, f."""
    layers: tuple[int, ...]
    """Decoder layers that are MoE layers, ascending; position in it is the *MoE layer* number."""
    scoring: str = "softmax"
    """How router logits become scores."""
    renormalize: bool = True
    """Whether the k chosen scores are divided by their sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only MoE language model."""

    family: Family
    """The registry row of ``model_type``."""
    directory: Path
    """The checkpoint directory."""
    vocab_size: int
    hidden: int
    """Width of the residual stream, d."""
    num_layers: int
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads; divides ``num_heads``."""
    head_dim: int
    dense_hidden: int
    """Inner width of the dense FFN in layers that are not MoE (0 when every layer is)."""
    norm_eps: float
    max_positions: int
    """Longest context, in tokens, prompt and answer together."""
    sliding_window: int | None
    """A token sees itself and the window-1 before it; None: everything before it."""
    attention_bias: bool
    """Whether q, k, v and o projections have a bias."""
    tied_embeddings: bool
    """Whether the head is the embedding matrix."""
    rope: RopeSpec
    moe: MoeSpec
    bos_id: int | None
    eos_ids: tuple[int, ...]
    """End-of-sequence ids of config.json (the tokenizer also reads generation_config.json)."""
    checkpoint_dtype: str
    """``torch_dtype``/``dtype`` as config.json states it, '' when absent; tensors carry their own."""

    @property
    def model_type(self) -> str:
        """``model_type`` of config.json."""
        return self.family.model_type

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Decoder layer of each MoE layer, ascending."""
        return self.moe.layers

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` has routed experts."""
        return layer in self.moe.layers

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden * self.moe.expert_hidden


def load_config(directory: str | Path) -> ModelConfig:
    """Read ``config.json`` in ``directory``. Raises ConfigError naming the field, value and range."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(
            f"no model directory at {directory}",
            reason="MODEL_NOT_FOUND",
            next_step="Pass the directory of a Hugging Face checkpoint, "
            "or build the demo model with `janus model demo DIR`",
        )
    path = directory / "config.json"
    return parse_config(read_json(path, ConfigError), directory, source=str(path))


def parse_config(raw: object, directory: Path, *, source: str = "config.json") -> ModelConfig:
    """The checked form of a parsed ``config.json``; ``source`` names it in errors."""
    fields = Fields(raw, source, ConfigError)
    family = _family(fields)
    _refuse_unsupported(fields)
    hidden = fields.whole("hidden_size", at_least=1)
    heads = fields.whole("num_attention_heads", at_least=1)
    kv_heads = fields.whole("num_key_value_heads", default=heads, at_least=1)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.whole("head_dim", default=0, at_least=0)
    if not head_dim:
        if hidden % heads:
            raise fields.error(
                "hidden_size", hidden, f"a multiple of num_attention_heads ({heads}), or set head_dim"
            )
        head_dim = hidden // heads
    if head_dim % 2:
        raise fields.error("head_dim", head_dim, "an even number: rotary embedding turns pairs")
    num_layers = fields.whole("num_hidden_layers", at_least=1)
    moe_layers = family.moe_layers(fields, num_layers)
    if not moe_layers:
        raise fields.error("num_hidden_layers", num_layers, "at least one layer with routed experts")
    vocab_size = fields.whole("vocab_size", at_least=1)
    max_positions = fields.whole("max_position_embeddings", default=family.max_positions, at_least=1)
    return ModelConfig(
        family=family,
        directory=directory,
        vocab_size=vocab_size,
        hidden=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        dense_hidden=fields.whole("intermediate_size", at_least=1) if len(moe_layers) < num_layers else 0,
        norm_eps=fields.number("rms_norm_eps", default=family.norm_eps, above=0.0),
        max_positions=max_positions,
        sliding_window=family.sliding_window(fields),
        attention_bias=family.attention_bias and fields.flag("attention_bias", default=False),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        rope=_rope(fields, family, max_positions),
        moe=_moe(fields, family, moe_layers),
        bos_id=fields.optional_whole("bos_token_id"),
        eos_ids=fields.ids("eos_token_id"),
        checkpoint_dtype=fields.text("torch_dtype", default="") or fields.text("dtype", default=""),
    )


def _family(fields: Fields) -> Family:
    model_type = fields.text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        implemented, planned = ", ".join(FAMILIES), ", ".join((*FAMILIES, *PLANNED))
        state = (
            "is planned but not implemented yet"
            if model_type in PLANNED
            else "is not a family that Janus knows"
        )
        raise ConfigError(
            f"the family {state} ({fields.source})",
            field="model_type",
            value=model_type,
            allowed=f"{implemented} (implemented now) of the supported list {planned}",
            reason="UNSUPPORTED_MODEL_TYPE",
            next_step="Serve a checkpoint of an implemented family; docs say how to add one",
        )
    return family


def _refuse_unsupported(fields: Fields) -> None:
    if fields.get("quantization_config") is not None:
        raise fields.error(
            "quantization_config", "present", "absent: weights in float32, bfloat16 or float16"
        )
    activation = fields.text("hidden_act", default="silu")
    if activation not in ("silu", "swish"):
        raise fields.error("hidden_act", activation, "silu")


def _moe(fields: Fields, family: Family, layers: tuple[int, ...]) -> MoeSpec:
    experts = fields.whole_any(family.num_experts_keys, at_least=1)
    return MoeSpec(
        num_experts=experts,
        top_k=fields.whole("num_experts_per_tok", at_least=1, at_most=experts),
        expert_hidden=fields.whole(family.expert_hidden_key, at_least=1),
        layers=layers,
        scoring=family.scoring,
        renormalize=family.renormalize(fields),
    )


def _rope(fields: Fields, family: Family, max_positions: int) -> RopeSpec:
    # Newer files say rope_parameters, older ones rope_theta and rope_scaling; `type` is the oldest rope_type.
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    inner = Fields(scaling, f"{fields.source}: rope_parameters", ConfigError)
    kind = inner.text("rope_type", default="") or inner.text("type", default="default")
    if kind not in ROPE_KINDS:
        raise inner.error("rope_type", kind, ", ".join(ROPE_KINDS))
    if inner.number("partial_rotary_factor", default=1.0) != 1.0:
        raise inner.error("partial_rotary_factor", inner.get("partial_rotary_factor"), "1.0")
    theta = inner.number(
        "rope_theta", default=fields.number("rope_theta", default=family.rope_theta, above=0.0), above=0.0
    )
    if kind == "default":
        return RopeSpec(theta=theta)
    original = inner.whole("original_max_position_embeddings", default=max_positions, at_least=1)
    stated = inner.get("factor")
    factor = (
        max_positions / original if stated is None and kind == "yarn" else inner.number("factor", above=0.0)
    )
    return RopeSpec(
        kind=kind,
        theta=theta,
        factor=factor,
        original_max_positions=original,
        attention_factor=inner.optional_number("attention_factor"),
        beta_fast=inner.number("beta_fast", default=32.0),
        beta_slow=inner.number("beta_slow", default=1.0),
        mscale=inner.number("mscale", default=0.0),
        mscale_all_dim=inner.number("mscale_all_dim", default=0.0),
        truncate=inner.flag("truncate", default=True),
        low_freq_factor=inner.number("low_freq_factor", default=1.0, above=0.0),
        high_freq_factor=inner.number("high_freq_factor", default=4.0, above=0.0),
    )
