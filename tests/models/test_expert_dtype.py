"""Experts quantised at load: what they are, what they weigh, and which models take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from janus_kernels.ops import dequantize, quantize_expert
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.errors import ConfigError
from janus_models.experts import ExpertModel
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
    assert keys == {
        "f/float32/512 tokens", "f/float32/int8 experts/512 tokens", "f/float32/int4 experts/512 tokens",
    }  # fmt: skip
