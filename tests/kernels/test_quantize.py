"""Quantised weights: within the documented error, and computed as their dequantised selves in any batch."""

from __future__ import annotations

import pytest
import torch
from janus_kernels import set_num_threads
from janus_kernels.native import NATIVE
from janus_kernels.ops import (
    ExpertSet,
    ExpertWeights,
    dequantize,
    expert_ffn,
    quantize,
    quantize_expert,
    quantized_linear,
)

CASES = [("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128)]


def nibbles(data: torch.Tensor) -> list[list[int]]:
    """The packing as its docstring says it, a number at a time."""
    rows = []
    for row in data.tolist():
        out = []
        for at in range(0, len(row), 16):
            block = row[at : at + 16]
            out += [byte % 16 - 8 for byte in block] + [byte // 16 - 8 for byte in block]
        rows.append(out)
    return rows


@pytest.mark.parametrize(("kind", "group"), CASES)
def test_the_error_is_what_is_documented(kind: str, group: int) -> None:
    torch.manual_seed(group)
    weight = torch.randn(24, 256) * torch.logspace(-3, 3, 24)[:, None]
    weight[3] = 0
    weight[5, 7] = 1e6
    q = quantize(weight.bfloat16() if group == 64 else weight, kind, group or 32)
    exact = (weight.bfloat16() if group == 64 else weight).double()
    width = group or 256
    scale = exact.view(24, -1, width).abs().amax(-1) / (127 if kind == "int8" else 7)
    torch.testing.assert_close(q.scale.double().view_as(scale), scale, rtol=1e-6, atol=0)
    wide = dequantize(q.data, q.scale).double()
    bound = scale.repeat_interleave(width, dim=1) * 0.5
    assert bool(((wide - exact).abs() <= bound * (1 + 1e-5)).all())
    assert not wide[3].any()
    if kind == "int4":
        values = torch.tensor(nibbles(q.data), dtype=torch.float64)
        assert values.abs().max() == 7
        assert torch.equal(
            wide.float(), (values.view(24, -1, group) * q.scale[..., None].double()).float().flatten(1)
        )
    assert q.shape == (24, 256) and q.group == width


@pytest.mark.parametrize(("kind", "group"), CASES)
@pytest.mark.parametrize(("tokens", "rows", "width"), [(1, 9, 128), (7, 33, 256), (40, 6, 1152)])
def test_quantized_linear(
    compute: str, threads: list[int], kind: str, group: int, tokens: int, rows: int, width: int
) -> None:
    torch.manual_seed(tokens)
    x, bias = torch.randn(tokens, width), torch.randn(rows)
    q = quantize(torch.randn(rows, width) / width**0.5, kind, group or 32)
    exact = x.double() @ dequantize(q.data, q.scale).double().T + bias.double()
    whole = quantized_linear(x, q, bias)
    torch.testing.assert_close(whole.double(), exact, rtol=1e-5, atol=5e-6)
    for size in (1, 3, 17):
        for part in torch.arange(tokens).split(size):
            assert torch.equal(quantized_linear(x[part], q, bias), whole[part])
    for number in threads:
        set_num_threads(number)
        assert torch.equal(quantized_linear(x, q, bias), whole)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("kind", "group"), CASES)
def test_quantized_experts(compute: str, threads: list[int], kind: str, group: int, biased: bool) -> None:
    if compute.startswith("triton") or compute == "cuda":
        pytest.skip("quantised experts run on CPUs only")
    torch.manual_seed(group)
    hidden, inner, count, tokens = 256, 128, 3, 21

    def w(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) / shape[-1] ** 0.5

    full = {
        e: ExpertWeights(
            w(inner, hidden), w(inner, hidden), w(hidden, inner),
            *((torch.randn(inner), torch.randn(inner), torch.randn(hidden)) if biased else ()),
        )
        for e in range(count)
    }  # fmt: skip
    experts = ExpertSet({e: quantize_expert(x, kind, group or 32) for e, x in full.items()})
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, 2)
    ids = torch.stack([torch.randperm(count)[:2] for _ in range(tokens)]).int()

    def run(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=torch.float64)
        expert_ffn(x, ids, weights, torch.ones_like(ids, dtype=torch.bool), experts, out)
        return out

    exact = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for e, weight in zip(ids[t].tolist(), weights[t].double(), strict=True):
            part = experts[e]
            assert part.scales is not None
            gate, up, down = (
                dequantize(data, scale).double()
                for data, scale in zip((part.gate, part.up, part.down), part.scales, strict=True)
            )
            g, u = gate @ x[t].double(), up @ x[t].double()
            if part.gate_bias is not None and part.up_bias is not None:
                g, u = g + part.gate_bias, u + part.up_bias
            y = down @ (g * torch.sigmoid(g) * u)
            exact[t] += weight * (y if part.down_bias is None else y + part.down_bias)
    whole = run(x, ids, weights)
    torch.testing.assert_close(whole, exact, rtol=1e-5, atol=3e-6)
    for t in range(tokens):
        assert torch.equal(run(x[t : t + 1], ids[t : t + 1], weights[t : t + 1])[0], whole[t])
    for number in threads:
        set_num_threads(number)
        assert torch.equal(run(x, ids, weights), whole)


def test_instruction_sets_agree_in_every_bit(instruction_sets: list[str]) -> None:
    if NATIVE is None or "avx512" not in instruction_sets:
        pytest.skip("this processor lacks AVX-512")
    torch.manual_seed(0)
    x = torch.randn(9, 256)
    for kind, group in CASES:
        q = quantize(torch.randn(19, 256), kind, group or 32)
        results = []
        for name in ("avx2", "avx512"):
            NATIVE.use_instruction_set(name)
            results.append(quantized_linear(x, q))
        assert torch.equal(*results)


def test_bad_input_is_refused() -> None:
    w = torch.randn(4, 96)
    for kind, group, match in (
        ("int3", 32, "kind = 'int3'"),
        ("int4", 48, "group = 48"),
        ("int4", 64, "rows of 96"),
    ):
        with pytest.raises(ValueError, match=match):
            quantize(w, kind, group)
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.tensor([[1.0, float("nan")]]), "int8")
    q = quantize(w, "int8")
    with pytest.raises(ValueError, match="x \\(2, 95\\)"):
        quantized_linear(torch.randn(2, 95), q)
    with pytest.raises(ValueError, match="with scales are torch"):
        ExpertWeights(w, w, w.T.contiguous(), scales=(q.scale, q.scale, q.scale))
