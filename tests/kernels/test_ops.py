"""Ops against float64 references, and bit for bit over batch sizes, threads, instruction sets and splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from janus_kernels.native import NATIVE
from janus_kernels.ops import (
    ExpertSet,
    ExpertWeights,
    RoutingSpec,
    combine,
    expert_ffn,
    linear,
    paged_attention,
    rms_norm,
    route,
    sample,
)
from janus_kernels.ops.attention import reference_attention
from janus_kernels.ops.experts import reference_expert_ffn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
assert NATIVE is not None
AVAILABLE = []
for name in ("portable", "avx2", "avx512"):
    try:
        NATIVE.use_instruction_set(name)
        AVAILABLE.append(name)
    except ValueError:  # this processor lacks it
        continue
BEST = AVAILABLE[-1]


@pytest.fixture(autouse=True)
def best() -> Iterator[None]:
    """Every test starts and ends with the default kernels."""
    yield
    assert NATIVE is not None
    NATIVE.use_instruction_set(BEST)
    NATIVE.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 16, 8), (5, 100, 37), (7, 576, 1536), (33, 17, 65), (1, 3, 1), (0, 32, 4)]
)
@pytest.mark.parametrize("isa", AVAILABLE)
def test_linear_is_right_and_batch_invariant(
    isa: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    assert NATIVE is not None
    NATIVE.use_instruction_set(isa)
    tokens, width, rows = shape
    torch.manual_seed(tokens + width)
    x, w, b = torch.randn(tokens, width), torch.randn(rows, width).to(dtype), torch.randn(rows)
    got = linear(x, w, b)
    exact = x.double() @ w.double().T + b.double()
    scale = x.double().abs() @ w.double().abs().T + 1
    assert bool(((got - exact).abs() <= 2e-6 * scale).all())
    for size in (1, 2, 3, 6):
        parts = [linear(chunk, w, b) for chunk in x.split(size)] if tokens else []
        assert all(torch.equal(part, whole) for part, whole in zip(parts, got.split(size), strict=False))
    NATIVE.set_num_threads(3)
    assert torch.equal(linear(x, w, b), got)


@pytest.mark.skipif("avx512" not in AVAILABLE, reason="needs both instruction sets")
def test_avx2_and_avx512_give_the_same_bits() -> None:
    assert NATIVE is not None
    torch.manual_seed(0)
    x, experts = torch.randn(19, 96), make_experts(4, 96, 80, torch.bfloat16)
    ids = torch.randint(0, 4, (19, 2), dtype=torch.int32)
    weights, mine = torch.rand(19, 2), torch.ones(19, 2, dtype=torch.bool)
    w, g = torch.randn(50, 96), torch.randn(96)
    results = []
    for isa in ("avx2", "avx512"):
        NATIVE.use_instruction_set(isa)
        out = torch.empty(19, 96, dtype=torch.float64)
        expert_ffn(x, ids, weights, mine, experts, out)
        results.append((linear(x, w), rms_norm(x, g, 1e-5), out, attention_case(1, torch.float32)[1]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_rms_norm() -> None:
    x, w = torch.randn(9, 3, 70), torch.randn(70)
    exact = w.double() * x.double() / torch.sqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)
    got = rms_norm(x, w, 1e-6)
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=1e-6)
    assert torch.equal(rms_norm(x[2:3], w, 1e-6), got[2:3])


def make_experts(count: int, hidden: int, inner: int, dtype: torch.dtype) -> ExpertSet:
    def w(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    return ExpertSet(
        {e: ExpertWeights(w(inner, hidden), w(inner, hidden), w(hidden, inner)) for e in range(count)}
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", AVAILABLE)
def test_expert_ffn(isa: str, dtype: torch.dtype) -> None:
    assert NATIVE is not None
    NATIVE.use_instruction_set(isa)
    torch.manual_seed(4)
    count, hidden, inner, tokens, topk = 8, 72, 50, 23, 3
    experts = make_experts(count, hidden, inner, dtype)
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, topk)
    ids = torch.stack([torch.randperm(count)[:topk] for _ in range(tokens)]).int()
    every = torch.ones(tokens, topk, dtype=torch.bool)

    def run(x=x, ids=ids, weights=weights, mine=every, experts=experts):  # type: ignore[no-untyped-def]
        out = torch.empty(x.shape[0], hidden, dtype=torch.float64)
        return expert_ffn(x, ids, weights, mine, experts, out), out

    stats, whole = run()
    assert stats.pairs == tokens * topk and stats.calls == len(torch.unique(ids))
    slow = torch.empty_like(whole)
    assert reference_expert_ffn(x, ids, weights, every, experts, slow) == stats
    torch.testing.assert_close(whole, slow, rtol=1e-4, atol=3e-6)
    # On the grid, so that sums are exact in any order.
    assert torch.equal(whole * 2.0**34, (whole * 2.0**34).round())
    for t in range(tokens):
        assert torch.equal(
            run(x[t : t + 1], ids[t : t + 1], weights[t : t + 1], every[:1])[1], whole[t : t + 1]
        )
    owner = torch.randint(0, 3, (count,))
    partials = []
    for g in range(3):
        hosted = ExpertSet({e: w for e, w in experts.items() if owner[e] == g})
        partials.append(
            run(mine=(owner[ids.long()] == g), experts=hosted)[1] if hosted else torch.zeros_like(whole)
        )
    out = torch.empty(tokens, hidden)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert torch.equal(combine([partials[i].clone() for i in order], out), whole.float())
    NATIVE.set_num_threads(4)
    assert torch.equal(run()[1], whole)


def test_expert_ffn_errors_and_nothing_to_do() -> None:
    experts = make_experts(2, 32, 16, torch.float32)
    x, weights = torch.randn(2, 32), torch.ones(2, 1)
    out = torch.full((2, 32), 7.0, dtype=torch.float64)
    none = torch.zeros(2, 1, dtype=torch.bool)
    ids = torch.tensor([[0], [5]], dtype=torch.int32)
    assert expert_ffn(x, ids, weights, none, experts, out).calls == 0
    assert not out.any()
    assert expert_ffn(x, ids, weights, none, ExpertSet(), out).calls == 0
    with pytest.raises(KeyError, match="5"):
        expert_ffn(x, ids, weights, ~none, experts, out)
    with pytest.raises(ValueError, match="out is"):
        expert_ffn(x, ids, weights, none, experts, out.float())
    x[1] = float("nan")
    expert_ffn(x, ids.clamp(max=1), weights, ~none, experts, out)
    assert bool(out[1].isnan().all()) and bool(out[0].isfinite().all())


def attention_case(seed: int, dtype: torch.dtype, window: int | None = None):  # type: ignore[no-untyped-def]
    """(arguments, result) over a mix of prefill chunks and decodes."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    heads, kv_heads, dim, size, blocks = 6, 2, 24, 4, 64
    keys, values = (torch.randn(blocks, size, kv_heads, dim).to(dtype) for _ in range(2))
    contexts = draw.integers(1, 40, 5)
    counts = [int(draw.integers(1, c + 1)) if i % 2 else 1 for i, c in enumerate(contexts)]
    order, width = draw.permutation(blocks), 10
    tables = np.zeros((5, width), np.int32)
    used = 0
    for i, context in enumerate(contexts):
        need = -(-int(context) // size)
        tables[i, :need] = order[used : used + need]
        used += need
    arguments = {
        "query_starts": torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
        "block_tables": torch.from_numpy(tables), "scale": dim**-0.5, "window": window,
    }  # fmt: skip
    query = torch.randn(sum(counts), heads, dim)
    return (query, keys, values, arguments), paged_attention(query, keys, values, **arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("isa", AVAILABLE)
def test_paged_attention(isa: str, window: int | None, dtype: torch.dtype) -> None:
    assert NATIVE is not None
    NATIVE.use_instruction_set(isa)
    for seed in range(4):
        (query, keys, values, arguments), got = attention_case(seed, dtype, window)
        slow = reference_attention(query, keys, values, **arguments)
        torch.testing.assert_close(got, slow, rtol=2e-5, atol=2e-5)
        # Each sequence alone, and each of its tokens in a step of its own, gives the same bits.
        starts, contexts = arguments["query_starts"].tolist(), arguments["context_lens"].tolist()
        for i, context in enumerate(contexts):
            for t in range(starts[i], starts[i + 1]):
                alone = paged_attention(
                    query[t : t + 1], keys, values, query_starts=torch.tensor([0, 1], dtype=torch.int32),
                    context_lens=torch.tensor([context - (starts[i + 1] - 1 - t)], dtype=torch.int32),
                    block_tables=arguments["block_tables"][i : i + 1], scale=arguments["scale"], window=window,
                )  # fmt: skip
                assert torch.equal(alone, got[t : t + 1])


def test_route_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    ids, weights = route(logits, RoutingSpec(top_k=2))
    assert ids.tolist() == [[1, 2], [0, 1]] and ids.dtype == torch.int32
    torch.testing.assert_close(weights, torch.full((2, 2), 0.5, dtype=torch.float64))
    _, plain = route(logits, RoutingSpec(top_k=2, renormalize=False))
    torch.testing.assert_close(plain, logits.softmax(-1).gather(1, ids.long()).double())
    biased, scores = route(logits, RoutingSpec(top_k=1, scoring="sigmoid"), torch.tensor([9.0, 0, 0, 0]))
    assert biased.tolist() == [[0], [0]]
    torch.testing.assert_close(scores, torch.ones(2, 1, dtype=torch.float64))


def test_sampling_depends_on_seed_and_index_alone_and_follows_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    draws = [sample(logits, temperature=1.0, seed=7, index=i) for i in range(20_000)]
    assert draws[:50] == [sample(logits, temperature=1.0, seed=7, index=i) for i in range(50)]
    assert draws[:200] != [sample(logits, temperature=1.0, seed=8, index=i) for i in range(200)]
    shares = np.bincount(draws, minlength=5) / len(draws)
    np.testing.assert_allclose(shares, logits.softmax(-1).numpy(), atol=0.015)
    assert {sample(logits, temperature=1.0, top_k=2, seed=1, index=i) for i in range(300)} == {0, 1}
    assert {sample(logits, temperature=1.0, top_p=0.6, seed=1, index=i) for i in range(300)} == {0}
    assert {sample(logits, temperature=1.0, min_p=0.3, seed=1, index=i) for i in range(300)} == {0, 1}
