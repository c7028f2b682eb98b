"""Run by test_triton_compiles.py: calls every op with kernels compiled instead of started; prints their names."""

from __future__ import annotations

import sys
from typing import Any

import torch
from janus_kernels import triton as ours

DTYPES = [getattr(torch, name) for name in sys.argv[2].split(",")]


class NoDevice:
    """What Triton asks a driver for when it compiles."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


compiled: set[str] = set()


def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    binary = kernel.warmup(*args, grid=grid, **options)
    assert binary.asm["cubin"]
    compiled.add(kernel.__name__)


def dense() -> None:
    from janus_kernels.triton import dense

    x = torch.randn(33, 512)
    for dtype in DTYPES:
        w = torch.randn(512, 512).to(dtype)
        dense.linear(x, w, x[0])
        dense.swiglu(x, w, w, w)
        dense.rms_norm(x, w[0], 1e-6)
    angles = torch.randn(9, 64)
    dense.rotary(x.view(33, 4, 128), angles, angles, torch.zeros(33, dtype=torch.int64))


def attention() -> None:
    from janus_kernels.triton import attention

    def call(
        heads: int, keys: torch.Tensor, values: torch.Tensor, window: int, sinks: torch.Tensor | None
    ) -> None:
        starts, lens, tables = (torch.zeros(n, dtype=torch.int32) for n in (4, 3, 300))
        query = torch.randn(9, heads, keys.shape[3])
        attention.attention(query, keys, values, starts, lens, tables.view(3, 100), 0.1, window, sinks)

    for dtype in DTYPES:
        cache = torch.zeros(9, 16, 4, 128, dtype=dtype)
        call(32, cache, cache, 0, None)
    latent = torch.zeros(9, 16, 1, 576, dtype=torch.bfloat16)
    call(128, latent, latent[..., :512], 0, None)
    small = torch.zeros(9, 16, 8, 64, dtype=torch.bfloat16)
    call(64, small, small, 128, torch.zeros(64))


def experts() -> None:
    from janus_kernels.ops.types import Activation, ExpertWeights
    from janus_kernels.triton import experts

    x, ids, weights = torch.randn(9, 512), torch.zeros(9, 4, dtype=torch.int32), torch.rand(9, 4).double()
    mine, out = torch.ones(9, 4, dtype=torch.bool), torch.empty(9, 512, dtype=torch.float64)
    for dtype in DTYPES:
        for name, biases in (("swiglu", ()), ("clamped_swiglu", (x[0, :256], x[0, :256], x[0]))):
            w = torch.zeros(256, 512, dtype=dtype)
            grouped = experts.group_experts({3: ExpertWeights(w, w, w.T.contiguous(), *biases)}, x.device)
            experts.expert_partial(x, ids, weights, mine, grouped, Activation(name=name), out)
    for count in (1, 2, 3, 4, 6):
        experts.combine([out] * count, x)


def routing_and_sampling() -> None:
    from janus_kernels.ops.types import RoutingSpec
    from janus_kernels.triton import routing, sampling

    logits = torch.zeros(9, 256)
    for spec, bias in (
        (RoutingSpec(top_k=8), None),
        (RoutingSpec(top_k=6, renormalize=False, scale=16.0, groups=8, groups_kept=3), None),
        (
            RoutingSpec(top_k=8, scoring="sigmoid", scale=2.5, groups=8, groups_kept=4, group_score="top2"),
            logits[0],
        ),
    ):
        routing.route(logits, spec, bias)
    ones = torch.ones(9)
    sampling.sample_rows(logits, ones, ones.int(), ones.double(), ones.double(), ones.long(), ones.long())


def scheduling() -> None:
    from janus_kernels import ReplicaLayout
    from janus_kernels.triton import scheduling

    for count, instances in ((160, 16), (1, 1), (1024, 1024)):
        layout = ReplicaLayout.from_placement([list(range(count))] * instances, count)
        placed = scheduling.place(layout, "cpu")
        for tokens in (1, 64):
            for policy in scheduling.POLICIES:
                ids = torch.zeros(tokens, 1, dtype=torch.int32)
                scheduling.schedule_rows(ids, placed, policy, layout_version=tokens)


def main() -> None:
    from triton.runtime import driver

    driver.set_active(NoDevice(int(sys.argv[1])))
    ours.load()
    for name in ours.KERNELS:
        module = sys.modules[f"janus_kernels.triton.{name}"]
        if hasattr(module, "launch"):
            module.launch = compile_only  # type: ignore[attr-defined]
    dense()
    attention()
    experts()
    routing_and_sampling()
    scheduling()
    print(*sorted(compiled))


main()
