"""What is known of how far costs hold: a weight per cause, with its uncertainty, sharpened by measured steps. Pure.

A step takes as long as its computing, which no weight tells, and its exchange. Of two schemes of one load the
computing is the same, so the difference of their times teaches the weights, whatever the load: what was measured at
one size of batch serves all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from janus_transport.cost import UNKNOWN_SHARE, Cost, Links

Vector = np.ndarray[Any, np.dtype[np.float64]]
_SD = 0.3
"""Of the weights of measured links: messages in a crowd are not what they are alone."""
_SD_SHARE, _SD_UNKNOWN_SHARE = 0.2, 0.4
_SD_RELAY = 1.0
_AGE = 0.1
_LEAST = 0.02
MODEL_ERROR = 0.12
"""What no weights explain of an exchange's time, as a share of it."""


def _vector(cost: Cost) -> Vector:
    return np.array((cost.intra, cost.inter, cost.crowd, cost.relay))


class Belief:
    """Weights of :class:`Cost`'s parts: a normal distribution."""

    def __init__(self, links: Links) -> None:
        known = links.share is not None
        share = UNKNOWN_SHARE if links.share is None else links.share
        self._mean: Vector = np.array((1.0, 1.0, share, 1.0))
        self._cov: Vector = np.diag((_SD, _SD, _SD_SHARE if known else _SD_UNKNOWN_SHARE, _SD_RELAY)) ** 2

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Means, of the times inside nodes, between nodes, of the share of an interface, and of relays."""
        intra, inter, crowd, relay = (float(w) for w in self._mean)
        return intra, inter, crowd, relay

    def seconds(self, cost: Cost) -> float:
        """Of one layer's exchange."""
        return max(0.0, float(self._mean @ _vector(cost)))

    def difference(self, one: Cost, other: Cost) -> tuple[float, float]:
        """By how many seconds ``one`` is slower than ``other``, and the standard deviation of that."""
        apart = _vector(one) - _vector(other)
        variance = float(apart @ self._cov @ apart) + self._unexplained(one, other)
        return float(self._mean @ apart), variance**0.5

    def _unexplained(self, one: Cost, other: Cost) -> float:
        return (MODEL_ERROR * max(self.seconds(one), self.seconds(other))) ** 2

    def learn(self, one: Cost, other: Cost, seconds: float, sd: float) -> None:
        """``one`` was measured to be so much slower than ``other``, give or take ``sd``."""
        apart = _vector(one) - _vector(other)
        spread = self._cov @ apart
        variance = float(apart @ spread) + self._unexplained(one, other) + sd**2
        if variance <= 0:
            return
        gain = spread / variance
        self._mean = np.maximum(_LEAST, self._mean + gain * (seconds - float(self._mean @ apart)))
        self._cov = self._cov - np.outer(gain, spread)

    def age(self) -> None:
        """Time has passed: what was learned holds a little less."""
        self._cov = self._cov + np.diag((_AGE,) * 4) ** 2
