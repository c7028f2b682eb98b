"""Run by test_triton_compiles.py: calls every op with kernels compiled instead of started; prints their names."""

from __future__ import annotations

import sys
from typing import Any

import torch
from janus_kernels import triton as ours

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def main() -> None:
    from triton.runtime import driver

    driver.set_active(NoDevice(int(sys.argv[1])))
    ours.load()
    for name in ours.KERNELS:
        module = sys.modules[f"janus_kernels.triton.{name}"]
        if hasattr(module, "launch"):
            module.launch = compile_only  # type: ignore[attr-defined]
    dense()
    print(*sorted(compiled))


main()
