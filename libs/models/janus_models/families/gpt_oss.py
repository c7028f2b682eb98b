"""gpt-oss (OpenAI): attention sinks, every other layer a sliding window, biases everywhere, a clamped SwiGLU.

As published its experts are MXFP4; transformers saves them plain, all of a layer in one tensor.
"""

from __future__ import annotations

from janus_models._fields import Fields
from janus_models.families.base import Family, TensorNames
from janus_models.families.common import QKVO, layer_windows
from janus_models.specs import ActivationSpec

_MLP = "model.layers.{layer}.mlp"


def _biases(fields: Fields) -> tuple[str, ...]:
    return QKVO if fields.flag("attention_bias", default=True) else ()


def _windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    window = fields.optional_whole("sliding_window", at_least=1) if "sliding_window" in fields.raw else 128
    return layer_windows(fields, num_layers, window, [layer % 2 == 0 for layer in range(num_layers)])


def _activation(fields: Fields) -> ActivationSpec:
    return ActivationSpec(
        name="clamped_swiglu",
        alpha=fields.number("swiglu_alpha", default=1.702),
        limit=fields.number("swiglu_limit", default=7.0, above=0.0),
    )


GPT_OSS = Family(
    model_type="gpt_oss",
    tensors=TensorNames(
        sinks="model.layers.{layer}.self_attn.sinks",
        router=_MLP + ".router.weight",
        router_bias=_MLP + ".router.bias",
        packed_experts=_MLP + ".experts.{part}",
    ),
    head_dim=64,
    num_experts_keys=("num_local_experts", "num_experts"),
    expert_hidden_key="intermediate_size",
    biases=_biases,
    windows=_windows,
    activation=_activation,
    rope={
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    rope_theta=150_000.0,
    norm_eps=1e-5,
    max_positions=131_072,
)
