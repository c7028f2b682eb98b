"""Time of one layer's exchange (paper, section 3.3): one or two phases, the router on either side.

Attention and MoE instances fill nodes of their own, unless all of them fit on one. Sizes of the way back mirror
those of the way out: partial sums are as wide as hidden states, and are reduced where those are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_scaling.checks import choice, whole
from janus_scaling.profiles import HardwareProfile

GATINGS = ("moe", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """How workers talk."""

    row_bytes: float
    """One token's hidden state."""
    top_k: int
    hardware: HardwareProfile
    """Its links, network and node size; of mixed pools, the slower one."""
    gating: str = "moe"
    """``moe``: every token to every instance (EGate). ``attention``: to those that its experts are on (AGate)."""
    phases: int = 2

    def __post_init__(self) -> None:
        choice("gating", self.gating, GATINGS)
        whole("phases", self.phases, 1, 2)

    def seconds(self, n_a: int, n_e: int, tokens: float) -> float:
        """Out and back, one layer, ``tokens`` of all attention workers together."""
        b, hw = tokens / n_a, self.hardware
        if n_a + n_e <= hw.devices_per_node:
            way = self._direct(n_a, n_e, b, self._local(n_e), self._link, hw.link_latency_s)
        elif self.phases == 1:
            way = self._direct(n_a, n_e, b, self._copies(n_e), self._network, hw.network_latency_s)
        else:
            way = self._two_phases(n_a, n_e, b)
        if self.gating == "attention":
            # Rows are sorted by instance first, and each instance must hear how many come from whom.
            way += hw.network_latency_s + hw.layer_overhead_s
        return 2 * way

    def colocated_seconds(self, devices: int, tokens: float) -> float:
        """The same where each of ``devices`` has attention and experts: all-to-all, a token once to each node."""
        hw = self.hardware
        if devices == 1:
            return 0.0
        b, nodes = tokens / devices, -(-devices // hw.devices_per_node)
        local = min(devices, hw.devices_per_node)
        # Every copy is passed on inside the node where it is used.
        way = b * self._spread(devices) * self.row_bytes / self._link + (local - 1) * hw.link_latency_s
        if nodes > 1:
            rows = b * self._spread(nodes) * (nodes - 1) / nodes
            way += rows * self.row_bytes / self._network + (nodes - 1) * hw.network_latency_s
        return 2 * (way + hw.layer_overhead_s / 2)

    def messages(self, n_a: int, n_e: int) -> int:
        """Messages between nodes, per layer and direction."""
        if n_a + n_e <= self.hardware.devices_per_node:
            return 0
        if self.phases == 1:
            return n_a * n_e
        return self._nodes(n_a) * self._nodes(n_e)

    def _nodes(self, devices: int) -> int:
        return -(-devices // self.hardware.devices_per_node)

    @property
    def _link(self) -> float:
        return self.hardware.link_bandwidth * self.hardware.bandwidth_efficiency

    @property
    def _network(self) -> float:
        return self.hardware.network_bandwidth * self.hardware.bandwidth_efficiency

    def _spread(self, places: int) -> float:
        """To how many of ``places`` a token goes, its k experts being anywhere; EGate: to all."""
        return places * (1 - (1 - 1 / places) ** self.top_k)

    def _copies(self, places: int) -> float:
        return float(places) if self.gating == "moe" else self._spread(places)

    def _local(self, places: int) -> float:
        """Copies that leave an instance for its neighbours: a multicast is passed on and leaves once."""
        return 1.0 if self.gating == "moe" else self._spread(places)

    def _direct(self, n_a: int, n_e: int, b: float, sent: float, bandwidth: float, latency: float) -> float:
        """Each instance to each: the busier end decides. ``sent``: copies of its rows that leave a sender."""
        sender = b * sent * self.row_bytes / bandwidth + n_e * latency
        receiver = b * n_a * self._copies(n_e) / n_e * self.row_bytes / bandwidth + n_a * latency
        return max(sender, receiver)

    def _two_phases(self, n_a: int, n_e: int, b: float) -> float:
        """Within the attention node, between nodes, within the MoE node; the cheaper of two ways."""
        hw, row = self.hardware, self.row_bytes
        a_nodes, e_nodes = self._nodes(n_a), self._nodes(n_e)
        p, q = -(-n_a // a_nodes), -(-n_e // e_nodes)
        gather = (p - 1) * (b * row / self._link + hw.link_latency_s)
        share = self._copies(e_nodes) / e_nodes
        message = p * b * share * row / self._network + hw.network_latency_s
        # Different instances of a node send to, and receive from, different nodes at the same time.
        each = max(-(-e_nodes // p), -(-a_nodes // q)) * message
        # Of a token's copies the fullest node has its instances' share.
        inside = self._copies(n_e) * q / n_e
        forward = inside * p * b * row * -(-a_nodes // q) / self._link + hw.link_latency_s * q
        # Much data: every instance sends its own rows through its own NIC to one instance of each MoE node.
        own = b * share * row / self._network + hw.network_latency_s
        striped = max(e_nodes, -(-n_a // q)) * own
        return min(gather + each, striped) + forward
