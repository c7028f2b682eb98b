"""sample: reproducible from (seed, index) alone, with the right distribution, limits and edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from janus_kernels.native import NATIVE
from janus_kernels.ops import sample, use_backend

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])


def draws(count: int, logits: torch.Tensor = LOGITS, **arguments: float) -> list[int]:
    settings = {"temperature": 1.0, "seed": 7, **arguments}
    return [sample(logits, index=i, **settings) for i in range(count)]  # type: ignore[arg-type]


def test_depends_on_seed_and_index_alone(compute: str) -> None:
    first = draws(60)
    assert draws(60) == first
    assert draws(60, seed=7 + (1 << 64)) == first
    assert draws(60, seed=8) != first
    assert [sample(LOGITS, temperature=1.0, seed=7, index=i) for i in reversed(range(60))] == first[::-1]


def test_follows_the_distribution(compute: str) -> None:
    for arguments, expected in [
        ({}, LOGITS.softmax(0)),
        ({"temperature": 2.0}, (LOGITS / 2).softmax(0)),
        ({"top_k": 3}, torch.tensor([2.0, 1.0, 0.0, -99.0, -99.0]).softmax(0)),
        ({"top_p": 0.9}, torch.tensor([2.0, 1.0, 0.0, -99.0, -99.0]).softmax(0)),
    ]:
        count = {"torch": 4000, "triton": 250, "cuda": 2000}.get(compute, 20_000)
        shares = np.bincount(draws(count, **arguments), minlength=5) / count
        np.testing.assert_allclose(shares, expected.numpy(), atol=2.5 / count**0.5)


def test_limits(compute: str) -> None:
    assert set(draws(300, top_k=2)) == {0, 1}
    assert set(draws(300, top_k=1)) == {0}
    assert set(draws(300, top_p=0.6)) == {0}
    assert set(draws(300, top_p=1e-9)) == {0}
    assert set(draws(300, min_p=0.3)) == {0, 1}
    assert set(draws(300, top_k=3, top_p=0.99, min_p=0.2)) == {0, 1}
    assert set(draws(300, top_k=99)) == {0, 1, 2, 3}
    # top_p counts shares of what top_k left: 0.73 and 0.27 of the best two.
    assert set(draws(300, top_k=2, top_p=0.7)) == {0}
    assert set(draws(300, top_k=2, top_p=0.75)) == {0, 1}


def test_ties_and_forbidden_tokens(compute: str) -> None:
    assert set(draws(200, torch.tensor([1.0, 1.0, 1.0]), top_k=2)) == {0, 1}
    assert set(draws(200, torch.tensor([float("-inf"), 0.0, float("-inf")]))) == {1}
    assert set(draws(200, torch.tensor([0.0]), top_p=0.5)) == {0}
    assert draws(5, torch.tensor([0.0, 3.0, 3.0]), temperature=0.0) == [1] * 5
    assert set(draws(200, torch.tensor([5.0, 0.0, 0.0]), temperature=1e-3)) == {0}


LIMITS = [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 300, "top_p": 0.7}]


@pytest.mark.parametrize("arguments", LIMITS, ids=str)
def test_backends_draw_the_same_tokens(compute: str, arguments: dict[str, float]) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 3
    with use_backend("torch"):
        expected = draws(60, logits, **arguments)
    assert draws(60, logits, **arguments) == expected


@pytest.mark.skipif(NATIVE is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize("arguments", [*LIMITS, {"top_p": 0.999}, {"top_p": 0.95, "min_p": 0.1}])
@pytest.mark.parametrize("scale", [0.3, 2.0, 9.0])
def test_large_vocabularies_with_ties(scale: float, arguments: dict[str, float]) -> None:
    """Enough that is kept for every way of sorting it; half of the tokens are forbidden, many are equal."""
    draw = torch.Generator().manual_seed(3)
    logits = (torch.randn(40_000, generator=draw) * scale * 8).round() / 8
    logits[torch.rand(40_000, generator=draw) < 0.5] = float("-inf")
    found = {}
    for name in ("native", "torch"):
        with use_backend(name):
            found[name] = draws(12, logits, temperature=0.8, **arguments)
    assert found["native"] == found["torch"]


def test_bad_temperature(compute: str) -> None:
    with pytest.raises(ValueError, match="temperature = -1"):
        sample(LOGITS, temperature=-1.0, seed=0, index=0)


@pytest.mark.skipif(NATIVE is None, reason="needs the compiled kernels")
def test_the_generator_is_numpys_philox() -> None:
    assert NATIVE is not None
    for seed, index in [(0, 0), (7, 3), ((1 << 64) - 1, 1 << 40), (123, (1 << 64) - 1)]:
        assert (
            NATIVE.uniform(seed, index)
            == np.random.Generator(np.random.Philox(key=seed, counter=index)).random()
        )
