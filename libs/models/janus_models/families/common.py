"""Config fields that several families read alike. Torch-free."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.specs import LatentSpec, RouterSpec, SharedSpec

QKVO = ("q", "k", "v", "o")


def sparse_step(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Qwen: every ``decoder_sparse_step``-th layer is routed, but none of ``mlp_only_layers``."""
    dense = fields.ids("mlp_only_layers")
    step = fields.whole("decoder_sparse_step", default=1, at_least=1)
    return tuple(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0)


def norm_topk_prob(fields: Fields) -> RouterSpec:
    """Softmax; ``norm_topk_prob`` says whether the chosen scores are divided by their sum."""
    return RouterSpec(renormalize=fields.flag("norm_topk_prob", default=False))


def attention_bias(fields: Fields) -> tuple[str, ...]:
    """``attention_bias``: on all four projections, or none."""
    return QKVO if fields.flag("attention_bias", default=False) else ()


def layer_windows(
    fields: Fields, num_layers: int, window: int | None, default: list[bool]
) -> tuple[int | None, ...]:
    """``layer_types`` names each layer's attention; ``default`` says which slide when it is absent."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return tuple(window if slides else None for slides in default)
    allowed = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(kind in allowed for kind in kinds):
        raise fields.error("layer_types", kinds, f"a list of {num_layers} of {', '.join(allowed)}")
    return tuple(allowed[kind] for kind in kinds)


def only(fields: Fields, name: str, allowed: str | bool | int) -> None:
    """Refuse a field whose value is not the one that is implemented; absent counts as that one."""
    value = fields.get(name)
    if value is not None and value != allowed:
        raise fields.error(name, value, str(allowed).lower())


def deepseek_latent(fields: Fields, *, interleaved: bool) -> LatentSpec:
    """DeepSeek's latent attention; ``q_lora_rank: null`` means none, absent means the family's 1536."""
    direct = "q_lora_rank" in fields.raw and fields.get("q_lora_rank") is None
    return LatentSpec(
        rank=fields.whole("kv_lora_rank", at_least=1),
        query_rank=None if direct else fields.whole("q_lora_rank", default=1536, at_least=1),
        plain_dim=fields.whole("qk_nope_head_dim", at_least=1),
        rope_dim=fields.whole("qk_rope_head_dim", at_least=2),
        value_dim=fields.whole("v_head_dim", at_least=1),
        interleaved=interleaved,
    )


def deepseek_dense(fields: Fields, num_layers: int, *, default: int) -> tuple[int, ...]:
    """The first ``first_k_dense_replace`` layers are dense, the others routed."""
    only(fields, "moe_layer_freq", 1)
    return tuple(range(fields.whole("first_k_dense_replace", default=default), num_layers))


def deepseek_shared(fields: Fields, *, default: int) -> SharedSpec | None:
    """``n_shared_experts`` of an expert's width, stored side by side; null or 0 for none."""
    absent = "n_shared_experts" not in fields.raw
    count = default if absent else fields.optional_whole("n_shared_experts") or 0
    return SharedSpec(hidden=count * fields.whole("moe_intermediate_size", at_least=1)) if count else None


def deepseek_biases(fields: Fields) -> tuple[str, ...]:
    """``attention_bias``: on the projections down and the one out; those up never have one."""
    return ("q_a", "kv_a", "o") if fields.flag("attention_bias", default=False) else ()
