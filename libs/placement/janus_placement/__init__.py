"""Which expert replicas go where: activation statistics, placement strategies, and what a change is worth.

Pure functions (paper, Appendix B, and ours) that the scheduler, the
autoscaler's estimator and the simulator share. A layout is per MoE layer; so is everything here.
"""

from __future__ import annotations

from janus_placement.changes import Change, Prices, Verdict, judge, plan_change, stages
from janus_placement.pool import Placement, PlacementError, Pool, from_hosted, to_hosted
from janus_placement.repair import repair
from janus_placement.routing import LayerRouting
from janus_placement.search import Budget
from janus_placement.strategies import STRATEGIES, Placed, expected_a_max, place
from janus_placement.window import Recorder, Report, ReportError, RoutingWindow

__all__ = [
    "STRATEGIES",
    "Budget",
    "Change",
    "LayerRouting",
    "Placed",
    "Placement",
    "PlacementError",
    "Pool",
    "Prices",
    "Recorder",
    "Report",
    "ReportError",
    "RoutingWindow",
    "Verdict",
    "expected_a_max",
    "from_hosted",
    "judge",
    "place",
    "plan_change",
    "repair",
    "stages",
    "to_hosted",
]
