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
            out += [byte % 16 for byte in block] + [byte // 16 for byte in block]
        rows.append(out)
    return rows


def test_the_error_of_int8_is_what_is_documented() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 256) * torch.logspace(-3, 3, 24)[:, None]
    weight[3] = 0
    weight[5, 7] = 1e6
    q = quantize(weight, "int8")
    scale = weight.double().abs().amax(-1) / 127
    torch.testing.assert_close(q.scale.double(), scale, rtol=1e-6, atol=0)
    wide = dequantize(q.data, q.scale).double()
    assert bool(((wide - weight.double()).abs() <= scale[:, None] * 0.5 * (1 + 1e-5)).all())
    assert not wide[3].any()
    assert q.shape == (24, 256) and q.group == 256


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_errs_no_more_than_rounding_to_nearest(group: int, dtype: torch.dtype) -> None:
    torch.manual_seed(group)
    weight = torch.randn(24, 256) * torch.logspace(-3, 3, 24)[:, None]
    weight[3] = 0
    weight[4] = 0.1
    weight[5, 7] = 6e4
    weight = weight.to(dtype)
    q = quantize(weight, "int4", group)
    assert q.shape == (24, 256) and q.group == group and q.scale.dtype == torch.float16
    exact = weight.double().view(24, -1, group)
    values = torch.tensor(nibbles(q.data), dtype=torch.float64).view_as(exact)
    scale, shift = q.scale.double().unbind(-1)
    wide = values * scale[..., None] + shift[..., None]
    assert torch.equal(dequantize(q.data, q.scale), wide.float().flatten(1))
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    step = ((high - low) / 15).half().double()
    nearest = low.half().double() + step * ((exact - low) / step.where(step > 0, 1)).round().clamp(0, 15)
    errors = [((w - exact) ** 2).sum(-1) for w in (wide, nearest)]
    # Midpoints come out differently in float32 and in float64 now and then.
    assert bool((errors[0] <= errors[1] * 1.05 + 1e-12).all())
    assert float(errors[0][6:].sum()) < 0.95 * float(errors[1][6:].sum())
    assert not wide[3].any()
    torch.testing.assert_close(wide[4], exact[4], rtol=2**-11, atol=0)


def test_int4_finds_a_grid_that_is_there() -> None:
    torch.manual_seed(5)
    q = torch.randint(0, 16, (40, 4, 32)).float()
    q[..., 0], q[..., 1] = 0, 15
    scale, shift = (torch.rand(40, 4, 1) + 0.5).half().float(), torch.randn(40, 4, 1).half().float()
    weight = (q * scale + shift).flatten(1)
    found = quantize(weight, "int4")
    torch.testing.assert_close(dequantize(found.data, found.scale), weight, rtol=0, atol=2e-3)


def test_int4_is_the_same_alone_and_in_any_company() -> None:
    """Replicas of an expert are quantised apart, on any machine: row by row and on any number of threads."""
    torch.manual_seed(7)
    weight = torch.randn(70, 1024)
    whole, before = quantize(weight, "int4"), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for part in torch.arange(70).split(23):
                alone = quantize(weight[part], "int4")
                assert torch.equal(alone.data, whole.data[part]) and torch.equal(
                    alone.scale, whole.scale[part]
                )
    finally:
        torch.set_num_threads(before)


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
    with pytest.raises(ValueError, match="beyond 65504"):
        quantize(w * 1e5, "int4")
    q = quantize(w, "int8")
    with pytest.raises(ValueError, match="x \\(2, 95\\)"):
        quantized_linear(torch.randn(2, 95), q)
    with pytest.raises(ValueError, match="with scales are torch"):
        ExpertWeights(w, w, w.T.contiguous(), scales=(q.scale, q.scale, q.scale))
    small = quantize(w, "int4")
    with pytest.raises(ValueError, match="a scale"):
        ExpertWeights(small.data, small.data, small.data, scales=(q.scale, q.scale, q.scale))
