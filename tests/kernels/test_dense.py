"""linear, swiglu_ffn, rms_norm, apply_rotary: close to float64, and bit for bit whatever is beside a token."""

from __future__ import annotations

import pytest
import torch
from janus_kernels import set_num_threads
from janus_kernels.native import NATIVE
from janus_kernels.ops import apply_rotary, linear, rms_norm, swiglu_ffn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (tokens, width, rows): odd widths, tails, one of each, more tokens than any register tile, long rows
SHAPES = [(1, 16, 8), (5, 100, 37), (7, 576, 96), (33, 17, 65), (1, 3, 1), (0, 32, 4), (2, 48, 3), (13, 1030, 21),
          (40, 2100, 12), (4, 15, 5), (70, 64, 9)]  # fmt: skip


def same_in_any_company(op, x: torch.Tensor, whole: torch.Tensor, threads: list[int]) -> None:  # type: ignore[no-untyped-def]
    """op(x) gives ``whole`` in any split of its rows, in another order, and on any number of threads."""
    for size in (1, 2, 3, 4, 6, 7, 16) if threads else (5, 16):  # Triton's tiles have sixteen rows
        parts = [op(chunk) for chunk in x.split(size)] if len(x) else []
        assert all(torch.equal(part, rows) for part, rows in zip(parts, whole.split(size), strict=False))
    order = torch.randperm(len(x))
    assert torch.equal(op(x[order]), whole[order])
    for count in threads:
        set_num_threads(count)
        assert torch.equal(op(x), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(compute: str, threads: list[int], shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, width, rows = shape
    torch.manual_seed(tokens + width)
    x, w, b = torch.randn(tokens, width), torch.randn(rows, width).to(dtype), torch.randn(rows)
    got = linear(x, w, b)
    exact = x.double() @ w.double().T + b.double()
    scale = x.double().abs() @ w.double().abs().T + 1
    assert bool(((got - exact).abs() <= 1e-6 * scale).all())
    assert torch.equal(linear(x, w), linear(x, w, torch.zeros(rows)))
    same_in_any_company(lambda rows_: linear(rows_, w, b), x, got, threads)


def test_linear_relative_error_is_below_1e5(compute: str) -> None:
    torch.manual_seed(0)
    x, w = torch.rand(9, 4096), torch.rand(64, 4096)
    exact = x.double() @ w.double().T
    assert float(((linear(x, w) - exact) / exact).abs().max()) < 1e-5


def test_linear_passes_on_what_is_not_finite(compute: str) -> None:
    x, w = torch.ones(3, 40), torch.ones(9, 40)
    x[1, 39] = float("nan")
    x[2, 3] = float("inf")
    out = linear(x, w)
    assert bool(out[1].isnan().all()) and bool(out[2].isinf().all()) and bool((out[0] == 40).all())


def test_linear_takes_odd_layouts(compute: str) -> None:
    torch.manual_seed(1)
    x, w = torch.randn(6, 20), torch.randn(20, 10)
    torch.testing.assert_close(linear(x, w.T), x @ w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        linear(x[:, ::2], w[::2].T.contiguous()), x[:, ::2] @ w[::2], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(linear(x.half(), w.T.double()), x.half().float() @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_ffn(compute: str, threads: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.randn(37, 200)
    gate, up, down = (torch.randn(*s).div(14).to(dtype) for s in ((150, 200), (150, 200), (200, 150)))
    got = swiglu_ffn(x, gate, up, down)
    g = x.double() @ gate.double().T
    exact = (g * torch.sigmoid(g) * (x.double() @ up.double().T)) @ down.double().T
    torch.testing.assert_close(got.double(), exact, rtol=2e-5, atol=2e-6)
    same_in_any_company(lambda rows: swiglu_ffn(rows, gate, up, down), x, got, threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 5, 64, 70, 576])
def test_rms_norm(compute: str, threads: list[int], width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, w = torch.randn(29, width), torch.randn(width).to(dtype)
    exact = w.double() * x.double() / torch.sqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)
    got = rms_norm(x, w, 1e-6)
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=1e-6)
    assert torch.equal(rms_norm(x.unflatten(0, (29, 1)), w, 1e-6).flatten(0, 1), got)
    same_in_any_company(lambda rows: rms_norm(rows, w, 1e-6), x, got, threads)


def test_apply_rotary(compute: str) -> None:
    torch.manual_seed(5)
    x, positions = torch.randn(9, 3, 24), torch.randint(0, 50, (9,))
    angles = torch.arange(50)[:, None] * torch.rand(12)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :12], x[..., 12:]
    c, s = cos[positions][:, None], sin[positions][:, None]
    expected = torch.cat((first * c - second * s, second * c + first * s), dim=-1)
    assert torch.equal(apply_rotary(x, cos, sin, positions), expected)
    assert apply_rotary(x[:0], cos, sin, positions[:0]).shape == (0, 3, 24)


def test_bad_shapes_are_refused(compute: str) -> None:
    with pytest.raises(ValueError, match=r"linear: x \(2, 3\)"):
        linear(torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(ValueError, match="bias"):
        linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(3))
    with pytest.raises(ValueError, match="rms_norm"):
        rms_norm(torch.ones(2, 3), torch.ones(4), 1e-6)
    with pytest.raises(ValueError, match="swiglu_ffn"):
        swiglu_ffn(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="positions"):
        apply_rotary(
            torch.ones(2, 1, 4), torch.ones(9, 2), torch.ones(9, 2), torch.ones(2, dtype=torch.int32)
        )


@pytest.mark.skipif(NATIVE is None, reason="needs the compiled kernels")
def test_fused_instruction_sets_give_the_same_bits(instruction_sets: list[str]) -> None:
    assert NATIVE is not None
    torch.manual_seed(0)
    x, norm = torch.randn(19, 1100), torch.randn(1100)
    w = [torch.randn(50, 1100).to(dtype) for dtype in DTYPES]
    results = []
    for name in instruction_sets[1:]:
        NATIVE.use_instruction_set(name)
        results.append(
            [
                *(linear(x, v) for v in w),
                rms_norm(x, norm, 1e-5),
                swiglu_ffn(x, w[1], w[1], w[1].T.contiguous()),
            ]
        )
    NATIVE.use_instruction_set(instruction_sets[-1])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
