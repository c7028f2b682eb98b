"""A tiny checkpoint whose routing depends on what a text is about: tokens have topics, the router goes by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from janus_models.tiny import SPECIAL, make_tiny

_HIDDEN = 64
_VOCAB = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Topical:
    """Sizes of such a model."""

    experts: int = 32
    top_k: int = 4
    layers: int = 4
    topics: int = 6

    def topic_of(self, token: int) -> int:
        """Tokens are dealt to the topics in turn."""
        return token % self.topics

    def tokens_of(self, topic: int) -> list[int]:
        """Tokens of a topic, without the special ones."""
        return [t for t in range(len(SPECIAL), _VOCAB) if self.topic_of(t) == topic]


def make_topical(directory: Path, shape: Topical, seed: int = 0, *, taste: float = 0.2) -> Path:
    """Write it. Text that begins in a topic stays in it, whatever is sampled.

    A token's embedding is mostly its topic's direction, layers add little to it, and the head favours tokens of the
    direction. A router's row is a mix of the topics' directions of its own, ``taste`` times N(0, 1), and noise: which
    experts a token goes to is decided by its topic first, and by itself second.
    """
    import torch
    from safetensors.torch import load_file, save_file

    make_tiny(
        directory, family="qwen3_moe", seed=seed, vocab_size=_VOCAB, weight_scale=0.4, hidden_size=_HIDDEN,
        num_experts=shape.experts, num_experts_per_tok=shape.top_k, num_hidden_layers=shape.layers,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    directions = torch.linalg.qr(noise(_HIDDEN, shape.topics))[0].T
    of_token = directions[torch.arange(_VOCAB) % shape.topics]
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if name.endswith("embed_tokens.weight"):
            made = of_token * _HIDDEN**0.5 + 0.6 * noise(_VOCAB, _HIDDEN)
        elif name.endswith("lm_head.weight"):
            made = 2.0 * of_token + noise(_VOCAB, _HIDDEN) / _HIDDEN**0.5
        elif name.endswith("mlp.gate.weight"):
            mix = taste * noise(shape.experts, shape.topics)
            made = mix @ directions + 2 * noise(shape.experts, _HIDDEN) / _HIDDEN**0.5
        else:
            continue
        assert made.shape == weight.shape, name
        weights[name] = made.to(weight.dtype).contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    return directory
