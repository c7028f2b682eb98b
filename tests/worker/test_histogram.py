"""Histograms of engines against counting by hand."""

from __future__ import annotations

import itertools
import random

import pytest
from janus_worker.histogram import Histogram


def test_counts_are_those_of_a_loop() -> None:
    bounds = sorted({random.random() for _ in range(8)})
    values = [random.random() * 1.2 for _ in range(500)] + bounds
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    report = histogram.report()
    edges = [float("-inf"), *bounds, float("inf")]
    slow = [sum(low < v <= high for v in values) for low, high in itertools.pairwise(edges)]
    assert report["counts"] == slow and report["bounds"] == bounds
    assert report["sum"] == pytest.approx(sum(values))
