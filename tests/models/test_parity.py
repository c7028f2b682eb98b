"""Our parts put together in one process against transformers, on random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_models import reference
from janus_models.checkpoint import Checkpoint, CheckpointError
from janus_models.config import RopeSpec, load_config
from janus_models.decoder import AttentionModel, torch_dtype
from janus_models.errors import ConfigError
from janus_models.experts import ExpertModel
from janus_models.families import FAMILIES
from janus_models.local import LocalModel
from janus_models.rope import RopeTable, inverse_frequencies
from janus_testing.variants import LINEAR, LLAMA3, VARIANTS, YARN


def prompts(seed: int, lengths: tuple[int, ...] = (1, 7, 40, 90), vocab: int = 512) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


# Of the module: tests then run variant by variant, and transformers loads each once.
@pytest.fixture(params=VARIANTS, scope="module")
def directory(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Path:
    return tiny(**VARIANTS[request.param])


def test_logits(directory: Path) -> None:
    """At every position of several prompts run as one batch: within 1e-4."""
    model, batch = LocalModel(directory), prompts(1)
    sequences = [model.new_sequence(prompt) for prompt in batch]
    rows = model.attention.logits(model.step([(s, len(s.ids)) for s in sequences])).split(
        [len(p) for p in batch]
    )
    for prompt, ours in zip(batch, rows, strict=True):
        expected = reference.prompt_logits(directory, prompt)
        assert expected.std() > 0.3, "a model whose logits say nothing proves nothing"
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_greedy_tokens(directory: Path) -> None:
    """64 tokens of streams of unequal length, prompts prefilled in chunks, token for token."""
    batch = prompts(2)
    streams = LocalModel(directory).generate(batch, 64, chunk=17)
    for prompt, ours in zip(batch, streams, strict=True):
        assert ours == reference.greedy_ids(directory, prompt, ours)
    assert len({token for ours in streams for token in ours}) > 30, (
        "streams that repeat one token prove little"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_own_generation(tiny: Callable[..., Path], family: str) -> None:
    """The quick check above against transformers stepping with its own cache, once a family."""
    directory, batch = tiny(family), prompts(6, (5, 33))
    for prompt, ours in zip(batch, LocalModel(directory).generate(batch, 24), strict=True):
        expected = reference.generate(directory, prompt, 24)
        assert ours == expected.ids == reference.greedy_ids(directory, prompt, ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_does_not_depend_on_its_neighbours_or_chunks(tiny: Callable[..., Path], family: str) -> None:
    directory, batch = tiny(family), prompts(3)
    together = LocalModel(directory).generate(batch, 24, chunk=512)
    assert [LocalModel(directory).generate([prompt], 24, chunk=5)[0] for prompt in batch] == together


@pytest.mark.parametrize("family", FAMILIES)
def test_not_one_bit_depends_on_the_neighbours(tiny: Callable[..., Path], family: str) -> None:
    model, batch = LocalModel(tiny(family)), prompts(7, (3, 21, 50))
    sequences = [model.new_sequence(prompt) for prompt in batch]
    together = model.step([(s, len(s.ids)) for s in sequences]).split([len(p) for p in batch])
    for prompt, rows in zip(batch, together, strict=True):
        alone = model.new_sequence(prompt)
        first, rest = len(prompt) // 3, len(prompt) - len(prompt) // 3
        assert torch.equal(torch.cat([model.step([(alone, first)]), model.step([(alone, rest)])]), rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_served_in_half_precision(tiny: Callable[..., Path], family: str) -> None:
    """Weights and cache rounded to float16, arithmetic in float32: nearly the same logits, in every family."""
    model, (prompt,) = LocalModel(tiny(family), "float16"), prompts(8, (40,))
    assert model.attention.new_kv_cache(1).keys.dtype == torch.float16
    ours = model.attention.logits(model.step([(model.new_sequence(prompt), len(prompt))]))
    expected = reference.prompt_logits(tiny(family), prompt)
    errors = (ours - expected).abs().amax(1)
    assert errors.median() < 0.02 * expected.std(), (
        "a token whose routing the rounding flips may differ, not most"
    )


def test_stop_ids_end_a_stream(tiny: Callable[..., Path]) -> None:
    directory, (prompt,) = tiny(), prompts(4, (9,))
    free = LocalModel(directory).generate([prompt], 20)[0]
    assert (
        LocalModel(directory).generate([prompt], 20, stop_ids=[free[5]])[0] == free[: free.index(free[5]) + 1]
    )


def test_cache_blocks_are_reused(tiny: Callable[..., Path]) -> None:
    model, batch = LocalModel(tiny(), kv_blocks=24, block_size=4), prompts(5, (11, 30))
    first = model.generate(batch, 12)
    assert all(model.generate(batch, 12) == first for _ in range(3))


@pytest.mark.parametrize(
    "parameters",
    [
        LINEAR,
        YARN,
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        {**YARN, "attention_factor": 1.3, "truncate": False, "beta_fast": 16.0},
        LLAMA3,
    ],
)
def test_rope_frequencies(parameters: dict[str, Any]) -> None:
    from transformers import MixtralConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = MixtralConfig(
        hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        max_position_embeddings=256,
        rope_parameters=dict(parameters),
    )
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    renamed = {
        "rope_type": "kind",
        "rope_theta": "theta",
        "original_max_position_embeddings": "original_max_positions",
    }
    spec = RopeSpec(**{renamed.get(key, key): value for key, value in parameters.items()})
    frequencies, ours = inverse_frequencies(spec, 64)
    assert torch.equal(frequencies, expected) and ours == pytest.approx(factor, rel=1e-12)


def test_rope_table_grows() -> None:
    table, whole = RopeTable(RopeSpec(), 16, start=4), RopeTable(RopeSpec(), 16, start=100)
    cos, sin = table.ensure(100)
    assert torch.equal(cos, whole.cos) and torch.equal(sin, whole.sin) and table.ensure(8)[0] is cos


def test_weights_are_views_of_the_file(tiny: Callable[..., Path]) -> None:
    directory = tiny()
    config, checkpoint = load_config(directory), Checkpoint(directory)
    experts = ExpertModel(config, checkpoint)
    name = config.family.tensors.expert_up.format(layer=2, expert=5)
    assert experts.load(2, 5).up.data_ptr() == checkpoint.tensor(name).data_ptr()
    assert experts.bytes_per_expert == 4 * config.expert_parameters
    half = tiny("mixtral", 8, dtype="float16")
    narrow = ExpertModel(load_config(half), Checkpoint(half), "float32").load(0, 0)
    assert narrow.gate.dtype == torch.float16, "a narrow file stays as it is: half the bytes to read"


def test_wrong_weights_for_the_config(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import dataclasses

    config, checkpoint = load_config(tiny()), Checkpoint(tiny())
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has shape \[64, 64\].*\[128, 64\]"):
        AttentionModel(dataclasses.replace(config, num_heads=8), checkpoint)
    with pytest.raises(CheckpointError, match="no tensor named"):
        AttentionModel(dataclasses.replace(config, num_layers=4), checkpoint)
    wider = dataclasses.replace(config.moe, expert_hidden=64)
    with pytest.raises(CheckpointError, match=r"w1\.weight has shape \[96, 64\]"):
        ExpertModel(dataclasses.replace(config, moe=wider), checkpoint)
    more = dataclasses.replace(config.moe, num_experts=9)
    with pytest.raises(CheckpointError, match=r"experts\.8\.w1"):
        ExpertModel(dataclasses.replace(config, moe=more), checkpoint)


def test_dtype_names() -> None:
    assert torch_dtype("bfloat16") is torch.bfloat16 and torch_dtype(torch.float16) is torch.float16
    with pytest.raises(ConfigError, match="allowed: float32, bfloat16, float16"):
        torch_dtype("int8")
