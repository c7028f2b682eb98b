"""Hardware profiles: what one worker's device can do at best, and how much of that software usually gets.

Peaks are the makers' figures, per device and one direction, dense BF16 (fp32 arithmetic on the CPU). A profile gives
a first model of a machine nobody has measured; :mod:`janus_scaling.fit` replaces it by measured coefficients.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from janus_scaling.checks import ScalingError, number, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """One device. Raises ScalingError for a number out of range."""

    name: str
    flops: float
    """Peak FLOP/s of a matrix product."""
    memory_bandwidth: float
    """Peak bytes/s from the device's memory."""
    memory_bytes: float
    """Memory of the device."""
    link_bandwidth: float
    """Bytes/s to devices of the same node, one direction."""
    network_bandwidth: float
    """Bytes/s to other nodes, one direction, per device."""
    devices_per_node: int
    link_latency_s: float = 5e-6
    """Time that a message inside a node costs, however short."""
    network_latency_s: float = 10e-6
    """The same between nodes."""
    layer_overhead_s: float = 20e-6
    """Time per layer on each side that is neither memory nor arithmetic: kernel starts, synchronisation."""
    compute_efficiency: float = 0.6
    """Share of ``flops`` that kernels reach."""
    bandwidth_efficiency: float = 0.7
    """Share of the bandwidths that kernels and transports reach."""
    memory_share: float = 0.9
    """Share of the memory for weights and KV cache; the rest is workspace."""
    price: float = 1.0
    """Cost of one device for an hour, in any unit; plans compare sums of it."""

    def __post_init__(self) -> None:
        inf = float("inf")
        for field in (
            "flops",
            "memory_bandwidth",
            "memory_bytes",
            "link_bandwidth",
            "network_bandwidth",
            "price",
        ):
            number(f"{self.name}.{field}", getattr(self, field), 0, inf, above=True)
        for field in ("link_latency_s", "network_latency_s", "layer_overhead_s"):
            number(f"{self.name}.{field}", getattr(self, field), 0, 10)
        for field in ("compute_efficiency", "bandwidth_efficiency", "memory_share"):
            number(f"{self.name}.{field}", getattr(self, field), 0, 1, above=True)
        whole(f"{self.name}.devices_per_node", self.devices_per_node, 1, 1024)

    @property
    def usable_bytes(self) -> float:
        """Memory for weights and KV cache."""
        return self.memory_bytes * self.memory_share

    @property
    def effective_flops(self) -> float:
        """FLOP/s that kernels reach."""
        return self.flops * self.compute_efficiency

    @property
    def effective_bandwidth(self) -> float:
        """Bytes/s that kernels read."""
        return self.memory_bandwidth * self.bandwidth_efficiency


# NVLink: 900 (Hopper) and 600 GB/s (A100) are both directions together; half of it is one. Memory: what the driver
# reports of "80 GB" is 79.6 GiB. Network: one 400 Gb/s NIC a GPU, as in the paper's testbed.
PROFILES = {
    # NVIDIA H100 SXM5 data sheet: 989 TFLOP/s dense BF16, 3.35 TB/s HBM3.
    "h100": HardwareProfile(
        name="h100", flops=989e12, memory_bandwidth=3.35e12, memory_bytes=85.5e9, link_bandwidth=450e9,
        network_bandwidth=50e9, devices_per_node=8,
    ),
    # NVIDIA H200 SXM data sheet: the H100's arithmetic, 4.8 TB/s and 141 GB HBM3e.
    "h200": HardwareProfile(
        name="h200", flops=989e12, memory_bandwidth=4.8e12, memory_bytes=150e9, link_bandwidth=450e9,
        network_bandwidth=50e9, devices_per_node=8, price=1.25,
    ),
    # NVIDIA A100 80 GB SXM4 data sheet: 312 TFLOP/s, 2.039 TB/s HBM2e; 200 Gb/s NICs as in DGX A100.
    "a100": HardwareProfile(
        name="a100", flops=312e12, memory_bandwidth=2.039e12, memory_bytes=85.5e9, link_bandwidth=300e9,
        network_bandwidth=25e9, devices_per_node=8, price=0.55,
    ),
    # A virtual machine with 2 cores of an AMD EPYC (Zen 2), measured: AVX2 fused multiply-add 207 GFLOP/s, reads of
    # 14-20 GB/s, shared memory through UCX 9.3 GB/s and about 30 us a message, TCP 5.3 GB/s.
    "cpu": HardwareProfile(
        name="cpu", flops=207e9, memory_bandwidth=20e9, memory_bytes=24 * 2**30, link_bandwidth=9.3e9,
        network_bandwidth=5.3e9, devices_per_node=1, link_latency_s=30e-6, network_latency_s=60e-6,
        layer_overhead_s=200e-6, compute_efficiency=0.4, price=0.02,
    ),
}  # fmt: skip
"""Built-in profiles by name; prices are relative to an H100, after what clouds ask for them, and meant to be set."""


def profile(name: str) -> HardwareProfile:
    """The built-in profile of that name, or that of a JSON file. Raises ScalingError."""
    if name in PROFILES:
        return PROFILES[name]
    if name.endswith(".json"):
        return load_profile(Path(name))
    raise ScalingError("profile", repr(name), ", ".join([*PROFILES, "the path of a .json file"]))


def load_profile(path: Path) -> HardwareProfile:
    """A profile from a JSON object with :class:`HardwareProfile`'s fields; ``name`` may be left out.

    Raises ScalingError naming file and field: one that is missing, unknown, no number, or out of range.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScalingError(str(path), str(error), "a JSON object of a hardware profile's fields") from error
    if not isinstance(raw, dict):
        raise ScalingError(str(path), type(raw).__name__, "a JSON object of a hardware profile's fields")
    raw = {"name": path.stem, **raw}
    fields = {f.name: f for f in dataclasses.fields(HardwareProfile)}
    for name, value in raw.items():
        if name not in fields:
            raise ScalingError(f"{path}: field", repr(name), ", ".join(fields))
        if name != "name" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ScalingError(f"{path}: {name}", repr(value), "a number")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in raw]
    if missing:
        raise ScalingError(f"{path}: {missing[0]}", "missing", f"a number; needed are {', '.join(missing)}")
    try:
        return HardwareProfile(**{**raw, "name": str(raw["name"])})
    except ScalingError as error:
        raise ScalingError(f"{path}: {error.field}", error.value, error.allowed) from error
