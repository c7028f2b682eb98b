"""The compiled kernels, measured: shares of the machine's bandwidth and peak, torch beside them, schedules."""

from __future__ import annotations

from janus_bench.kernels.goals import goals
from janus_bench.kernels.measure import CASES, CLOCKS, measure
from janus_bench.kernels.report import markdown, picture

__all__ = ["CASES", "CLOCKS", "goals", "markdown", "measure", "picture"]
