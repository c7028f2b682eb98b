"""Config fields that several families read alike. Torch-free."""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.specs import RouterSpec

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
    fields: Fields, num_layers: int, window: int, default: list[bool]
) -> tuple[int | None, ...]:
    """``layer_types`` names each layer's attention; ``default`` says which slide when it is absent."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return tuple(window if slides else None for slides in default)
    allowed = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(kind in allowed for kind in kinds):
        raise fields.error("layer_types", kinds, f"a list of {num_layers} of {', '.join(allowed)}")
    return tuple(allowed[kind] for kind in kinds)
