"""What can stop a measurement."""

from __future__ import annotations


class BenchError(Exception):
    """It cannot be made; the text says why and what to do."""
