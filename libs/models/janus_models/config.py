"""``config.json`` of a checkpoint, checked and reduced to what serving needs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from janus_models._fields import Fields, read_json
from janus_models.errors import ConfigError
from janus_models.families import FAMILIES
from janus_models.families.base import Family
from janus_models.families.common import only
from janus_models.specs import LatentSpec, MoeSpec, QuantisationSpec, RopeSpec, RouterSpec, SharedSpec

__all__ = ["LatentSpec", "ModelConfig", "MoeSpec", "RopeSpec", "RouterSpec", "SharedSpec", "load_config"]

ROPE_KINDS = ("default", "linear", "yarn", "llama3")


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
    """Width of a head's query and key; with MLA the plain and the rotary part together."""
    latent: LatentSpec | None
    """MLA's shape; None: grouped-query attention."""
    dense_hidden: int
    """Inner width of the dense FFN in layers that are not MoE (0 when every layer is)."""
    norm_eps: float
    max_positions: int
    """Longest context, in tokens, prompt and answer together."""
    windows: tuple[int | None, ...]
    """Per layer: a token sees itself and the window-1 before it; None: everything before it."""
    biases: frozenset[str]
    """Attention projections that have a bias, of ``q``, ``k``, ``v``, ``o``, and MLA's ``q_a``, ``kv_a``."""
    clip_qkv: float | None
    """Queries, keys and values are clamped to plus and minus this before they are rotated."""
    tied_embeddings: bool
    """Whether the head is the embedding matrix."""
    rope: RopeSpec
    moe: MoeSpec
    quantisation: QuantisationSpec | None
    """How the files store their matrices; None: plain floats."""
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

    @property
    def rope_dim(self) -> int:
        """Width of what the rotary embedding turns."""
        return self.latent.rope_dim if self.latent else self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache holds for a token, all layers together."""
        if self.latent:
            return self.num_layers * (self.latent.rank + self.latent.rope_dim)
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

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
    activation = fields.text("hidden_act", default="silu")
    if activation not in ("silu", "swish"):
        raise fields.error("hidden_act", activation, "silu")
    hidden = fields.whole("hidden_size", at_least=1)
    latent = family.latent(fields)
    heads, kv_heads, head_dim = _latent_heads(fields, latent) if latent else _heads(fields, family, hidden)
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
        latent=latent,
        windows=family.windows(fields, num_layers),
        biases=frozenset(family.biases(fields)),
        clip_qkv=family.clip_qkv(fields),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        rope=_rope(fields, family, max_positions),
        moe=_moe(fields, family, moe_layers),
        quantisation=_quantisation(fields, family),
        bos_id=fields.optional_whole("bos_token_id"),
        eos_ids=fields.ids("eos_token_id"),
        checkpoint_dtype=fields.text("torch_dtype", default="") or fields.text("dtype", default=""),
    )


def _heads(fields: Fields, family: Family, hidden: int) -> tuple[int, int, int]:
    """(query heads, key/value heads, head dimension) of grouped-query attention."""
    heads = fields.whole("num_attention_heads", at_least=1)
    kv_heads = fields.whole("num_key_value_heads", default=heads, at_least=1)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    head_dim = fields.whole("head_dim", default=family.head_dim, at_least=0)
    if not head_dim:
        if hidden % heads:
            raise fields.error(
                "hidden_size", hidden, f"a multiple of num_attention_heads ({heads}), or set head_dim"
            )
        head_dim = hidden // heads
    if head_dim % 2:
        raise fields.error("head_dim", head_dim, "an even number: rotary embedding turns pairs")
    return heads, kv_heads, head_dim


def _latent_heads(fields: Fields, latent: LatentSpec) -> tuple[int, int, int]:
    """The same with MLA: all heads share one key, and files say head_dim for its rotary part."""
    if latent.rope_dim % 2:
        raise fields.error(
            "qk_rope_head_dim", latent.rope_dim, "an even number: rotary embedding turns pairs"
        )
    return fields.whole("num_attention_heads", at_least=1), 1, latent.plain_dim + latent.rope_dim


def _family(fields: Fields) -> Family:
    model_type = fields.text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ConfigError(
            f"the family is not one that Janus knows ({fields.source})",
            field="model_type",
            value=model_type,
            allowed=", ".join(FAMILIES),
            reason="UNSUPPORTED_MODEL_TYPE",
            next_step="Serve a checkpoint of one of these families; docs/adding-a-model-family.md says how to add one",
        )
    return family


def _quantisation(fields: Fields, family: Family) -> QuantisationSpec | None:
    raw = fields.get("quantization_config")
    if raw is None:
        return None
    inner = Fields(raw, f"{fields.source}: quantization_config", ConfigError)
    method = inner.text("quant_method")
    allowed = "mxfp4" if family.tensors.packed_experts else "fp8"
    if method != allowed:
        raise inner.error("quant_method", method, f"{allowed}, or no quantization_config at all")
    if method == "mxfp4":
        for name in ("hidden_size", family.expert_hidden_key):
            if fields.whole(name) % 32:
                raise fields.error(name, fields.get(name), "a multiple of 32, the block of mxfp4")
        return QuantisationSpec(method=method)
    only(inner, "fmt", "e4m3")
    only(inner, "activation_scheme", "dynamic")
    block = inner.get("weight_block_size") or [128, 128]
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise inner.error("weight_block_size", block, "two numbers of rows and columns above 0")
    return QuantisationSpec(method=method, block=(block[0], block[1]))


def _moe(fields: Fields, family: Family, layers: tuple[int, ...]) -> MoeSpec:
    experts = fields.whole_any(family.num_experts_keys, at_least=1)
    top_k = fields.whole("num_experts_per_tok", at_least=1, at_most=experts)
    router = family.router(fields)
    if experts % router.groups:
        raise fields.error("n_group", router.groups, f"a divisor of the number of experts ({experts})")
    if router.group_score == "top2" and experts // router.groups < 2:
        raise fields.error("n_group", router.groups, f"at most {experts // 2}: groups of two experts or more")
    if top_k > experts // router.groups * router.groups_kept:
        raise fields.error(
            "num_experts_per_tok",
            top_k,
            f"at most the {experts // router.groups * router.groups_kept} experts of {router.groups_kept} groups",
        )
    return MoeSpec(
        num_experts=experts,
        top_k=top_k,
        expert_hidden=fields.whole(family.expert_hidden_key, at_least=1),
        layers=layers,
        router=router,
        activation=family.activation(fields),
        shared=family.shared(fields),
    )


def _rope(fields: Fields, family: Family, max_positions: int) -> RopeSpec:
    # Newer files say rope_parameters, older ones rope_theta and rope_scaling; `type` is the oldest rope_type.
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or family.rope
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
