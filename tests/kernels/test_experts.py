"""expert_ffn and combine: right, on the grid, and independent of batch, order, threads and split of experts."""

from __future__ import annotations

import pytest
import torch
from janus_kernels import set_num_threads
from janus_kernels.ops import Activation, ExpertSet, ExpertStats, ExpertWeights, combine, expert_ffn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SWIGLU, CLAMPED = Activation(), Activation(name="clamped_swiglu", alpha=1.3, limit=0.75)


def make_experts(count: int, hidden: int, inner: int, dtype: torch.dtype, biased: bool = False) -> ExpertSet:
    def w(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    def biases() -> list[torch.Tensor]:
        return [torch.randn(n) for n in (inner, inner, hidden)] if biased else []

    return ExpertSet(
        {
            e: ExpertWeights(w(inner, hidden), w(inner, hidden), w(hidden, inner), *biases())
            for e in range(count)
        }
    )


def exact(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertSet,
    activation: Activation = SWIGLU,
) -> torch.Tensor:
    """The slow, obvious float64 answer."""
    out = torch.zeros(x.shape, dtype=torch.float64)

    def product(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return weight.double() @ x + (0 if bias is None else bias.double())

    for t in range(x.shape[0]):
        for number, weight in zip(ids[t].tolist(), weights[t].double(), strict=True):
            e = experts[number]
            gate, up = product(e.gate, x[t].double(), e.gate_bias), product(e.up, x[t].double(), e.up_bias)
            if activation.name == "swiglu":
                inner = gate * torch.sigmoid(gate) * up
            else:
                gate = torch.minimum(gate, torch.tensor(activation.limit))
                up = up.clamp(-activation.limit, activation.limit)
                inner = (up + 1) * gate * torch.sigmoid(activation.alpha * gate)
            out[t] += weight * product(e.down, inner, e.down_bias)
    return out


def run(x, ids, weights, experts, mine=None, activation=SWIGLU):  # type: ignore[no-untyped-def]
    out = torch.full(x.shape, 7.0, dtype=torch.float64)
    mine = torch.ones_like(ids, dtype=torch.bool) if mine is None else mine
    return expert_ffn(x, ids, weights, mine, experts, out, activation), out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "count", "topk", "hidden", "inner"),
                         [(23, 8, 3, 72, 50), (1, 4, 4, 33, 7), (90, 2, 1, 64, 48), (20, 3, 2, 1100, 130)])  # fmt: skip
def test_expert_ffn(
    compute: str,
    threads: list[int],
    dtype: torch.dtype,
    tokens: int,
    count: int,
    topk: int,
    hidden: int,
    inner: int,
) -> None:
    torch.manual_seed(tokens)
    experts = make_experts(count, hidden, inner, dtype)
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, topk)
    ids = torch.stack([torch.randperm(count)[:topk] for _ in range(tokens)]).int()
    stats, whole = run(x, ids, weights, experts)
    assert stats == ExpertStats(len(torch.unique(ids)), tokens * topk)
    torch.testing.assert_close(whole, exact(x, ids, weights, experts), rtol=1e-5, atol=3e-6)
    # On the grid, so that sums are exact in any order.
    assert torch.equal(whole * 2.0**34, (whole * 2.0**34).round())
    # Triton's interpreter takes its time over each call: fewer of them.
    for size in (1, 3, 17) if threads else (19,):
        for part in torch.arange(tokens).split(size):
            assert torch.equal(run(x[part], ids[part], weights[part], experts)[1], whole[part])
    order = torch.randperm(tokens)
    assert torch.equal(run(x[order], ids[order], weights[order], experts)[1], whole[order])
    flipped = run(x, ids.flip(1).contiguous(), weights.flip(1).contiguous(), experts)[1]
    assert torch.equal(flipped, whole)
    for split in range(3 if threads else 1):
        owner = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(split))
        partials = []
        for g in range(3):
            here = ExpertSet({e: w for e, w in experts.items() if owner[e] == g})
            partials.append(run(x, ids, weights, here, owner[ids.long()] == g)[1])
        out = torch.empty(tokens, hidden)
        for arrangement in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            assert torch.equal(combine([partials[i] for i in arrangement], out), whole.float())
    for number in threads:
        set_num_threads(number)
        assert torch.equal(run(x, ids, weights, experts)[1], whole)


@pytest.mark.parametrize("activation", [SWIGLU, CLAMPED], ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "inner"), [(3, 40, 19), (30, 64, 48)])
def test_biases_and_activations(
    compute: str,
    threads: list[int],
    dtype: torch.dtype,
    activation: Activation,
    tokens: int,
    hidden: int,
    inner: int,
) -> None:
    torch.manual_seed(tokens)
    experts = make_experts(3, hidden, inner, dtype, biased=True)
    # One expert without: biases are an expert's own.
    experts[1] = make_experts(1, hidden, inner, dtype)[0]
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, 2)
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(tokens)]).int()
    whole = run(x, ids, weights, experts, activation=activation)[1]
    torch.testing.assert_close(whole, exact(x, ids, weights, experts, activation), rtol=1e-5, atol=3e-6)
    assert torch.equal(whole * 2.0**34, (whole * 2.0**34).round())
    for t in range(tokens) if threads else [tokens - 1]:
        alone = run(x[t : t + 1], ids[t : t + 1], weights[t : t + 1], experts, activation=activation)[1]
        assert torch.equal(alone[0], whole[t])
    for number in threads:
        set_num_threads(number)
        assert torch.equal(run(x, ids, weights, experts, activation=activation)[1], whole)


def test_clamped_swiglu_is_transformers_own(compute: str) -> None:
    """gpt_oss's experts, whose gate and up rows alternate in one transposed weight."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    torch.manual_seed(4)
    config = GptOssConfig(hidden_size=32, intermediate_size=24, num_local_experts=3)
    peer = GptOssExperts(config)
    for p in peer.parameters():
        torch.nn.init.normal_(p)
    both, bias = peer.gate_up_proj.detach().transpose(1, 2), peer.gate_up_proj_bias.detach()
    down = peer.down_proj.detach().transpose(1, 2)
    experts = ExpertSet(
        {
            e: ExpertWeights(
                both[e, ::2].contiguous(), both[e, 1::2].contiguous(), down[e].contiguous(),
                bias[e, ::2].contiguous(), bias[e, 1::2].contiguous(), peer.down_proj_bias[e].detach(),
            )
            for e in range(3)
        }
    )  # fmt: skip
    x, weights = torch.randn(7, 32), torch.rand(7, 2)
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(7)])
    with torch.no_grad():
        expected = peer(x, ids, weights)
    got = run(x, ids.int(), weights, experts, activation=Activation(name="clamped_swiglu"))[1]
    torch.testing.assert_close(got.float(), expected, rtol=1e-5, atol=1e-4)


def test_replicas_of_an_expert_share_its_tokens(compute: str) -> None:
    torch.manual_seed(8)
    experts = make_experts(1, 40, 24, torch.bfloat16)
    x, ids, weights = torch.randn(9, 40), torch.zeros(9, 1, dtype=torch.int32), torch.rand(9, 1)
    whole = run(x, ids, weights, experts)[1]
    here = torch.arange(9)[:, None] % 2 == 0
    out = torch.empty(9, 40)
    combine([run(x, ids, weights, experts, here)[1], run(x, ids, weights, experts, ~here)[1]], out)
    assert torch.equal(out, whole.float())


def test_plain_mappings_and_mixed_dtypes(compute: str) -> None:
    torch.manual_seed(2)
    experts = make_experts(2, 32, 16, torch.float32)
    x, ids, weights = torch.randn(5, 32), torch.randint(0, 2, (5, 1), dtype=torch.int32), torch.rand(5, 1)
    whole = run(x, ids, weights, experts)[1]
    assert torch.equal(run(x, ids, weights, dict(experts))[1], whole)
    one = experts[1]
    mixed = ExpertSet(
        {0: experts[0], 1: ExpertWeights(one.gate.bfloat16(), one.up, one.down.T.contiguous().T)}
    )
    torch.testing.assert_close(
        run(x, ids, weights, mixed)[1], exact(x, ids, weights, mixed), rtol=1e-5, atol=1e-6
    )


def test_errors_and_nothing_to_do(compute: str) -> None:
    experts = make_experts(2, 32, 16, torch.float32)
    x, weights = torch.randn(2, 32), torch.ones(2, 1)
    ids = torch.tensor([[0], [5]], dtype=torch.int32)
    none = torch.zeros(2, 1, dtype=torch.bool)
    for nobody in (experts, ExpertSet()):
        stats, out = run(x, ids, weights, nobody, none)
        assert stats == ExpertStats(0, 0) and not out.any()
    assert run(x[:0], ids[:0], weights[:0], experts)[0] == ExpertStats(0, 0)
    with pytest.raises(KeyError, match="5"):
        run(x, ids, weights, experts)
    with pytest.raises(ValueError, match="out is"):
        expert_ffn(x, ids, weights, none, experts, torch.empty(2, 32))
    with pytest.raises(ValueError, match="ids is"):
        expert_ffn(x, ids.long(), weights, none, experts, torch.empty(2, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="up_bias is"):
        ExpertWeights(x, x, x.T, up_bias=torch.zeros(3))
    with pytest.raises(ValueError, match="activation = 'relu'"):
        Activation(name="relu")
    with pytest.raises(ValueError, match="limit = 0"):
        Activation(limit=0)
    with pytest.raises(ValueError, match="at least one"):
        combine([], torch.empty(2, 32))
    with pytest.raises(ValueError, match="partial sum"):
        combine([torch.empty(2, 31, dtype=torch.float64)], torch.empty(2, 32))


def test_one_bad_token_spoils_itself_alone(compute: str) -> None:
    torch.manual_seed(6)
    experts = make_experts(2, 48, 32, torch.float32)
    x, weights = torch.randn(3, 48), torch.ones(3, 2)
    ids = torch.tensor([[0, 1], [1, 0], [0, 1]], dtype=torch.int32)
    good = run(x, ids, weights, experts)[1]
    x[1, 5] = float("nan")
    bad = run(x, ids, weights, experts)[1]
    assert bool(bad[1].isnan().all())
    assert torch.equal(bad[0], good[0]) and torch.equal(bad[2], good[2])
