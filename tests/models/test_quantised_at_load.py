"""Weights quantised at load: what they are, what they weigh, and which models take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from janus_kernels.ops import QuantizedWeight, dequantize, quantize_expert
from janus_models import decoder
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.errors import ConfigError
from janus_models.experts import ExpertModel
from janus_models.loading import Loader
from janus_models.local import LocalModel
from janus_worker.settings import WorkerSettings


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_experts_are_quantised_as_they_are_loaded(tiny: Callable[..., Path], kind: str) -> None:
    directory = tiny("mixtral", 40, hidden_size=64, intermediate_size=96)
    config = load_config(directory)
    full = ExpertModel(config, Checkpoint(directory)).load(1, 2)
    model = ExpertModel(config, Checkpoint(directory), quantize=kind)
    got, expected = model.load(1, 2), quantize_expert(full, kind)
    assert got.scales is not None and expected.scales is not None
    parts = [got.gate, got.up, got.down, *got.scales]
    for ours, theirs in zip(
        parts, [expected.gate, expected.up, expected.down, *expected.scales], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert model.bytes_per_expert == sum(part.nbytes for part in parts)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_model_computes_what_its_dequantised_self_does(tiny: Callable[..., Path], kind: str) -> None:
    directory = tiny("mixtral", 41, hidden_size=64, intermediate_size=96)
    quantised, wide = LocalModel(directory, expert_dtype=kind), LocalModel(directory)
    for layer, experts in enumerate(quantised._loaded):
        for number, e in experts.items():
            assert e.scales is not None
            parts = zip((e.gate, e.up, e.down), e.scales, strict=True)
            wide._loaded[layer][number] = type(e)(*(dequantize(data, scale) for data, scale in parts))
    prompt = list(range(3, 20))
    states = [model.step([(model.new_sequence(prompt), len(prompt))]) for model in (quantised, wide)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    assert not torch.equal(states[0], LocalModel(directory).step([(wide.new_sequence(prompt), len(prompt))]))


def test_widths_that_int4_cannot_group_are_refused(tiny: Callable[..., Path]) -> None:
    directory = tiny("mixtral", 42, hidden_size=64, intermediate_size=72)
    with pytest.raises(ConfigError, match="int4 with 64 and 72"):
        ExpertModel(load_config(directory), Checkpoint(directory), quantize="int4")
    ExpertModel(load_config(directory), Checkpoint(directory), quantize="int8").load(0, 0)


def test_members_of_a_cohort_agree_on_the_experts_dtype() -> None:
    keys = {
        WorkerSettings(model="m", expert_dtype=d).cohort_key("f") for d in ("same", "float32", "int8", "int4")
    }
    keys.add(WorkerSettings(model="m", attention_dtype="int8").cohort_key("f"))
    assert keys == {
        "f/float32/512 tokens", "f/float32/int8 experts/512 tokens", "f/float32/int4 experts/512 tokens",
        "f/float32/int8 attention/512 tokens",
    }  # fmt: skip


class Dequantised(Loader):
    def matrix(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        weight = super().matrix(name, shape)
        assert isinstance(weight, QuantizedWeight)
        return dequantize(weight.data, weight.scale)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2"])
def test_quantised_attention_computes_what_its_dequantised_self_does(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    """Attention of both kinds, dense layers, shared experts with and without a gate; tokens alone and together."""
    wide = {
        "deepseek_v2": {"q_lora_rank": 32, "v_head_dim": 32, "intermediate_size": 96},
        "qwen2_moe": {"shared_expert_intermediate_size": 96},
    }[family]
    directory = tiny(family, 43, hidden_size=64, **wide)
    full, quantised = LocalModel(directory), LocalModel(directory, attention_dtype=kind)
    monkeypatch.setattr(decoder, "Loader", Dequantised)
    models = [quantised, LocalModel(directory, attention_dtype=kind), full]
    prompt = list(range(3, 20))
    states = [model.step([(model.new_sequence(prompt), len(prompt))]) for model in models]
    torch.testing.assert_close(*states[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(states[0], states[2], rtol=1e-4, atol=1e-4)
    alone = quantised.new_sequence(prompt)
    rows = torch.cat([quantised.step([(alone, 1)]) for _ in prompt])
    assert torch.equal(rows, states[0])


def test_rows_that_int4_cannot_group_are_named(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="int4 needs rows"):
        LocalModel(tiny("mixtral", 44, hidden_size=48, num_attention_heads=4), attention_dtype="int4")
