"""route: against a slow float64 reference written as sorting, with ties, groups, bias and odd values."""

from __future__ import annotations

import itertools

import pytest
import torch
from janus_kernels import set_num_threads
from janus_kernels.ops import RoutingSpec, route, router_logits


def slow_route(
    logits: list[float], spec: RoutingSpec, bias: list[float] | None
) -> tuple[list[int], list[float]]:
    """One token."""
    row = torch.tensor(logits, dtype=torch.float64)
    scores = (row.softmax(0) if spec.scoring == "softmax" else row.sigmoid()).tolist()
    ranks = [s + (bias[e] if bias else 0.0) for e, s in enumerate(scores)]
    size = len(ranks) // spec.groups

    def group_rank(g: int) -> float:
        best = sorted(ranks[g * size : (g + 1) * size], reverse=True)
        return best[0] if spec.group_score == "max" else sum(best[:2])

    kept = sorted(range(spec.groups), key=lambda g: (-group_rank(g), g))[: spec.groups_kept]
    candidates = [e for e in range(len(ranks)) if e // size in kept]
    ids = sorted(candidates, key=lambda e: (-ranks[e], e))[: spec.top_k]
    total = sum(scores[e] for e in ids) if spec.renormalize else 1.0
    return ids, [scores[e] / total * spec.scale for e in ids]


SPECS = [
    RoutingSpec(top_k=2),
    RoutingSpec(top_k=6, renormalize=False),
    RoutingSpec(top_k=24, scale=2.5),
    RoutingSpec(top_k=4, scoring="sigmoid", scale=2.5),
    RoutingSpec(top_k=6, renormalize=False, scale=16.0, groups=8, groups_kept=3),
    RoutingSpec(top_k=6, scoring="sigmoid", groups=4, groups_kept=2, group_score="top2"),
]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_route(compute: str, threads: list[int], spec: RoutingSpec, biased: bool) -> None:
    torch.manual_seed(spec.top_k)
    logits = torch.randn(50, 24) * 3
    bias = torch.randn(24) if biased else None
    ids, weights = route(logits, spec, bias)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float64
    for t in range(50):
        expected, shares = slow_route(logits[t].tolist(), spec, None if bias is None else bias.tolist())
        assert ids[t].tolist() == expected
        torch.testing.assert_close(
            weights[t], torch.tensor(shares, dtype=torch.float64), rtol=2e-6, atol=1e-8
        )
        if not threads and t % 17:
            continue
        alone = route(logits[t : t + 1], spec, bias)
        assert torch.equal(alone[0][0], ids[t]) and torch.equal(alone[1][0], weights[t])
    for count in threads:
        set_num_threads(count)
        again = route(logits.repeat(40, 1), spec, bias)
        assert torch.equal(again[0], ids.repeat(40, 1)) and torch.equal(again[1], weights.repeat(40, 1))


def test_gpt_oss_and_deepseek_choose_as_transformers_does(compute: str) -> None:
    """Each family's router on random weights: the same experts, the same weights."""
    from transformers import DeepseekV2Config, DeepseekV3Config, GptOssConfig
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    torch.manual_seed(21)
    grouped = {"hidden_size": 32, "n_routed_experts": 24, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 5,
               "routed_scaling_factor": 2.5}  # fmt: skip
    peers = [
        (
            GptOssTopKRouter(GptOssConfig(hidden_size=32, num_local_experts=24, num_experts_per_tok=4)),
            RoutingSpec(top_k=4),
        ),
        (
            DeepseekV2TopkRouter(DeepseekV2Config(**grouped, topk_method="group_limited_greedy")),
            RoutingSpec(top_k=5, renormalize=False, scale=2.5, groups=4, groups_kept=2),
        ),
        (
            DeepseekV3TopkRouter(DeepseekV3Config(**grouped, norm_topk_prob=True)),
            RoutingSpec(top_k=5, scoring="sigmoid", scale=2.5, groups=4, groups_kept=2, group_score="top2"),
        ),
    ]
    x = torch.randn(40, 32)
    for peer, spec in peers:
        for p in (*peer.parameters(), *peer.buffers()):
            torch.nn.init.normal_(p)
        with torch.no_grad():
            _, weights, ids = peer(x)
        own, correction = getattr(peer, "bias", None), getattr(peer, "e_score_correction_bias", None)
        ours, shares = route(router_logits(x, peer.weight.detach(), own), spec, correction)
        order, mine = ids.sort(dim=1), ours.sort(dim=1)
        assert torch.equal(order.values.int(), mine.values)
        expected = weights.gather(1, order.indices).double()
        torch.testing.assert_close(shares.gather(1, mine.indices), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("experts", [1, 5, 16, 17, 160, 1024])
def test_any_number_of_experts(compute: str, experts: int) -> None:
    torch.manual_seed(experts)
    logits = torch.randn(3, experts)
    spec = RoutingSpec(top_k=min(8, experts))
    ids, _ = route(logits, spec)
    assert ids.tolist() == [slow_route(row, spec, None)[0] for row in logits.tolist()]


def test_the_lowest_id_wins_ties(compute: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 5.0, 5.0]])
    ids, weights = route(logits, RoutingSpec(top_k=2))
    assert ids.tolist() == [[1, 2], [0, 1], [2, 3]]
    torch.testing.assert_close(weights, torch.full((3, 2), 0.5, dtype=torch.float64))
    grouped = RoutingSpec(top_k=2, groups=2, groups_kept=1)
    assert route(logits, grouped)[0].tolist() == [[1, 0], [0, 1], [2, 3]]


def test_what_is_not_a_number_is_chosen_last(compute: str) -> None:
    nan = float("nan")
    spec = RoutingSpec(top_k=3, scoring="sigmoid", renormalize=False)
    ids, weights = route(torch.tensor([[nan, 1.0, 2.0], [nan, nan, nan]]), spec)
    assert ids.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert bool(weights[1].isnan().all())
    assert route(torch.empty(0, 3), spec)[0].shape == (0, 3)


def test_router_logits_do_not_depend_on_the_batch(compute: str) -> None:
    torch.manual_seed(1)
    x, w = torch.randn(65, 128), torch.randn(48, 128)
    whole = router_logits(x, w)
    for size, first in itertools.product((1, 3, 8), (0, 5, 30)):
        assert torch.equal(router_logits(x[first : first + size], w), whole[first : first + size])


def test_bad_input_is_refused(compute: str) -> None:
    for bad, match in [
        ({"scoring": "relu"}, "scoring"),
        ({"top_k": 0}, "top_k"),
        ({"group_score": "sum"}, "group_score"),
        ({"groups": 2, "groups_kept": 3}, "groups_kept"),
    ]:
        with pytest.raises(ValueError, match=match):
            RoutingSpec(**{"top_k": 1, **bad})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="top_k = 5"):
        route(torch.ones(1, 4), RoutingSpec(top_k=5))
    with pytest.raises(ValueError, match="in 3 groups"):
        route(torch.ones(1, 4), RoutingSpec(top_k=1, groups=3, groups_kept=1))
    with pytest.raises(ValueError, match="hold top_k = 3"):
        route(torch.ones(1, 4), RoutingSpec(top_k=3, groups=2, groups_kept=1))
    with pytest.raises(ValueError, match="bias"):
        route(torch.ones(1, 4), RoutingSpec(top_k=1), torch.ones(3))
