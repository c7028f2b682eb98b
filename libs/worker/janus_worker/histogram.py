"""Counts of durations by size, kept by an engine: no locks, no labels."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any


class Histogram:
    """``counts[i]``: values above ``bounds[i - 1]`` and at most ``bounds[i]``; the last one has the rest."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def report(self) -> dict[str, Any]:
        """``janus.v1.Histogram`` as JSON."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.total}
