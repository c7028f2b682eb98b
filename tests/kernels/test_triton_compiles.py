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


@pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))
@pytest.mark.parametrize(
    ("architecture", "dtypes"),
    [
        (90, "bfloat16"),
        pytest.param(90, "float32,float16", marks=pytest.mark.slow),
        pytest.param(80, "float32,bfloat16,float16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(400)
def test_all_kernels_compile(architecture: int, dtypes: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    child = Path(__file__).with_name("triton_compile.py")
    done = subprocess.run(
        [sys.executable, str(child), str(architecture), dtypes],
        env=environment, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == KERNELS


KERNELS = {
    "_linear", "_gate_up", "_rms_norm", "_rotary", "_attend", "_merge", "_inner", "_outer", "_weigh", "_add", "_route",
    "_draw", "_mark", "_assign", "_rewrite", "_digest", "_fold",
}  # fmt: skip
