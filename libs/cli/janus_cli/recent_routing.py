"""The routing that a mesh's workers reported in the last minutes, as Redis still has it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from janus_placement import LayerRouting, Report, ReportError, RoutingWindow
from janus_runtime.coordination import Coordination


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentRouting:
    """By MoE layer; empty when nothing was reported."""

    layers: dict[int, LayerRouting] = field(default_factory=dict)
    batch: dict[int, float] = field(default_factory=dict)
    """Mean tokens of a step."""


async def recent_routing(coordination: Coordination, num_experts: int) -> RecentRouting:
    """What was reported of ``num_experts`` experts; other models' reports are passed over. Raises JanusError."""
    window, position = None, "0"
    while True:
        position, entries = await coordination.read_routing(position)
        if not entries:
            break
        for fields in entries:
            try:
                report = Report.from_fields(fields)
                if len(report.counts) != num_experts:
                    continue
                if window is None or not window.fits(num_experts, report.samples.shape[1]):
                    window = RoutingWindow(num_experts, report.samples.shape[1], clock=time.monotonic)
                window.add(report)
            except ReportError:
                continue
    if window is None:
        return RecentRouting()
    layers = {i: found for i in window.layers if (found := window.routing(i)) is not None}
    return RecentRouting(layers=layers, batch={i: window.mean_batch(i) for i in layers})
