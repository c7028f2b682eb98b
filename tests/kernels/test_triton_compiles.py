"""Every Triton kernel compiles to machine code for GPUs, which needs none: the interpreter takes what no GPU would.

The ops are called with CPU tensors whose kernels are compiled instead of started. So it also shows that no op looks
at a tensor's contents on its way, which would be a host sync and keep it out of CUDA graphs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from janus_kernels import triton

ARCHITECTURES = {"sm80": 80, "sm90": 90}


@pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))
@pytest.mark.parametrize("architecture", [pytest.param("sm80", marks=pytest.mark.slow), "sm90"], ids=str)
def test_all_kernels_compile(architecture: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    child = Path(__file__).with_name("triton_compile.py")
    done = subprocess.run(
        [sys.executable, str(child), str(ARCHITECTURES[architecture])],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = set(done.stdout.split())
    assert compiled == KERNELS


KERNELS = {"_linear", "_gate_up", "_rms_norm", "_rotary"}
