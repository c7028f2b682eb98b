"""The exchange between workers, measured: round trips of a pair beside bare UCXX, and layers of an m x n cohort."""

from __future__ import annotations

from janus_bench.exchange.measure import TRANSPORTS, Plan, measure
from janus_bench.exchange.report import markdown, picture

__all__ = ["TRANSPORTS", "Plan", "markdown", "measure", "picture"]
