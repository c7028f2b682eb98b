"""Discrete-event simulation of Janus and of the systems it is compared with, on any hardware, model and trace.

Scheduling, placement and sizing are the code that the mesh runs.
"""

from __future__ import annotations

from janus_simulator.engine import SIGHTS, Outcome, Scenario, simulate
from janus_simulator.importers import TraceError, load_csv, parse_csv
from janus_simulator.report import picture, rows, summarize
from janus_simulator.systems import SYSTEMS, Planner, Setting, System, planner
from janus_simulator.traces import SHAPES, Trace, synthetic

__all__ = [
    "SHAPES", "SIGHTS", "SYSTEMS", "Outcome", "Planner", "Scenario", "Setting", "System", "Trace", "TraceError",
    "load_csv", "parse_csv", "picture", "planner", "rows", "simulate", "summarize", "synthetic",
]  # fmt: skip
