"""What a checkpoint's ``config.json`` comes down to, part by part. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: frequencies by position. How dimensions pair up is the attention's matter."""

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
    """yarn: denominator of the attention factor when both mscales are set. DeepSeek also scales scores by it."""
    truncate: bool = True
    """yarn: round the correction range to whole dimensions."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than original_max_positions / this are divided by factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than original_max_positions / this are left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434): one latent per token is all that is cached."""

    rank: int
    """Width of the latent, kv_lora_rank."""
    query_rank: int | None
    """Width of the query's own bottleneck, q_lora_rank; None: queries are projected directly."""
    plain_dim: int
    """Width of a head's query and key without position, qk_nope_head_dim."""
    rope_dim: int
    """Width of the rotary part, one for all key heads, qk_rope_head_dim."""
    value_dim: int
    """Width of a head's value, v_head_dim."""
    interleaved: bool = True
    """Whether neighbours (x0, x1), (x2, x3), ... rotate together; else a dimension and the one half a width on."""
    norm_eps: float = 1e-6
    """Epsilon of the norms of query and latent; not that of the other norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """How router logits choose experts; the fields of janus_kernels.ops.RoutingSpec, without torch."""

    scoring: str = "softmax"
    """``softmax`` over all experts, or ``sigmoid`` of each."""
    renormalize: bool = True
    """Whether the k chosen scores are divided by their sum."""
    scale: float = 1.0
    """Weights are multiplied by it."""
    groups: int = 1
    """Experts form this many groups of neighbours."""
    groups_kept: int = 1
    """A token chooses from its best groups only, this many."""
    group_score: str = "max"
    """What ranks a group: ``max`` of its experts, or the sum of its best two, ``top2``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSpec:
    """What lies between an expert's first products and its last; as janus_kernels.ops.Activation, without torch."""

    name: str = "swiglu"
    """``swiglu`` or ``clamped_swiglu``."""
    alpha: float = 1.702
    """clamped_swiglu: gain inside the sigmoid."""
    limit: float = 7.0
    """clamped_swiglu: bound of gate (above) and up (both sides)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationSpec:
    """How weights are quantised in the files; they are made float when they are loaded."""

    method: str
    """``fp8``: matrices of float8 e4m3 with a scale per block. ``mxfp4``: experts of 4-bit floats, 32 to a scale."""
    block: tuple[int, int] | None = None
    """fp8: rows and columns that share a scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSpec:
    """The shared expert of every MoE layer: one SwiGLU that every token goes through, on the attention worker."""

    hidden: int
    """Inner width; several shared experts are stored and computed as one of their total width."""
    gated: bool = False
    """Whether a sigmoid of one more projection of the token scales its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """The experts. Every MoE layer of a model has the same shape."""

    num_experts: int
    """Routed experts per MoE layer, E."""
    top_k: int
    """Experts per token, k."""
    expert_hidden: int
    """Inner width of one routed expert, f."""
    layers: tuple[int, ...]
    """Decoder layers that are MoE layers, ascending; position in it is the *MoE layer* number."""
    router: RouterSpec = field(default_factory=RouterSpec)
    activation: ActivationSpec = field(default_factory=ActivationSpec)
    shared: SharedSpec | None = None
