"""The ops in Triton: what ``cuda`` tensors are computed with. The kernels are in :mod:`janus_kernels.triton`."""

from __future__ import annotations

from janus_kernels import triton
from janus_kernels.ops.table import OpTable


def make_table() -> OpTable:
    """The table; imports Triton. Raises RuntimeError where that cannot run."""
    triton.load()
    from janus_kernels.ops.torch_backend import quantized_linear
    from janus_kernels.triton import dense, experts, libraries, routing, sampling

    return OpTable(
        name="triton", linear=dense.linear, quantized_linear=quantized_linear, swiglu=dense.swiglu,
        rms_norm=dense.rms_norm, rotary=dense.rotary,
        attention=libraries.attention, route=routing.route, expert_ffn=experts.expert_ffn, combine=experts.combine,
        sample=sampling.sample,
    )  # fmt: skip
