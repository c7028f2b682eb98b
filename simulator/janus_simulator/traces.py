"""Request traces: when requests arrive and how long they are. Synthetic ones are a function of their seed.

Lengths are log-normal around a mean (ShareGPT-like: the paper's mean is 16 in, 256 out). Arrivals are a Poisson
process whose rate follows the day, and whose bursts follow BurstGPT's finding that gaps are Gamma-distributed and far
more uneven than a Poisson process's (arXiv 2401.17644).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from janus_scaling.checks import ScalingError, choice, number, whole

Float = np.ndarray[Any, np.dtype[np.float64]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
SHAPES = ("steady", "bursty", "diurnal")
DAY_S = 86_400.0
MAX_REQUESTS = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests by arrival. Raises ScalingError for what is no trace."""

    arrival_s: Float
    """float64 [R], ascending, from 0."""
    prompt: Int64
    """int64 [R], tokens of the prompt, at least 1."""
    output: Int64
    """int64 [R], tokens of the answer, at least 1."""
    name: str = "trace"

    def __post_init__(self) -> None:
        size = len(self.arrival_s)
        if not 1 <= size <= MAX_REQUESTS:
            raise ScalingError(f"{self.name}: requests", size, f"1..{MAX_REQUESTS}")
        if len(self.prompt) != size or len(self.output) != size:
            raise ScalingError(
                f"{self.name}: lengths", (len(self.prompt), len(self.output)), f"{size} of each"
            )
        if (
            not np.isfinite(self.arrival_s).all()
            or self.arrival_s[0] < 0
            or (np.diff(self.arrival_s) < 0).any()
        ):
            raise ScalingError(f"{self.name}: arrival_s", "not ascending", "finite, ascending, from 0")
        for field in ("prompt", "output"):
            if (least := int(getattr(self, field).min())) < 1:
                raise ScalingError(f"{self.name}: {field}", least, "1 or more")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival; at least a second."""
        return max(1.0, float(self.arrival_s[-1]))

    def window(self, begin_s: float, end_s: float) -> Trace:
        """The requests that arrive in [begin_s, end_s), from 0. Raises ScalingError when there are none."""
        inside = (self.arrival_s >= begin_s) & (self.arrival_s < end_s)
        return Trace(self.arrival_s[inside] - begin_s, self.prompt[inside], self.output[inside], self.name)

    def rates(self, bin_s: float) -> tuple[Float, Float]:
        """Output and prompt tokens per second that arrive, per bin of ``bin_s`` seconds: float64 [bins] each."""
        number("bin_s", bin_s, 0, 1e9, above=True)
        bins = (self.arrival_s // bin_s).astype(np.int64)
        count = int(bins[-1]) + 1
        out = np.bincount(bins, weights=self.output, minlength=count)
        prompt = np.bincount(bins, weights=self.prompt, minlength=count)
        # A trace shorter than a bin has its own length's rate.
        length = bin_s if count > 1 else min(bin_s, self.duration_s)
        return out / length, prompt / length


def synthetic(
    shape: str, *, rate: float, duration_s: float, mean_prompt: float = 16.0, mean_output: float = 256.0,
    burstiness: float = 4.0, peak: float = 7.5, sigma: float = 0.7, seed: int = 0,
) -> Trace:  # fmt: skip
    """A trace of requests.

    Args:
        shape: ``steady`` (Poisson), ``bursty`` (Gamma gaps) or ``diurnal`` (a day's course, with bursts).
        rate: mean requests per second, > 0.
        duration_s: length, > 0. A diurnal trace fits one day's course into it.
        burstiness: squared coefficient of variation of gaps; 1 is Poisson. Not for ``steady``.
        peak: diurnal: highest rate over the mean (the paper's trace: 7.5).
        sigma: of the lengths' log-normal distribution; 0: all the same.

    Raises ScalingError.
    """
    choice("shape", shape, SHAPES)
    number("rate", rate, 0, 1e6, above=True)
    number("duration_s", duration_s, 0, 1e9, above=True)
    number("mean_prompt", mean_prompt, 1, 1e6)
    number("mean_output", mean_output, 1, 1e6)
    number("burstiness", burstiness, 0, 1000, above=True)
    number("peak", peak, 1, 100)
    number("sigma", sigma, 0, 3)
    expected = rate * duration_s
    if expected > MAX_REQUESTS:
        raise ScalingError("rate x duration_s", f"{expected:.3g} requests", f"at most {MAX_REQUESTS}")
    rng = np.random.default_rng(seed)
    # Arrivals in operational time, where the rate is 1, then warped by the course of the day.
    need = int(expected + 8 * np.sqrt(expected * max(1.0, burstiness)) + 16)
    uneven = 1.0 if shape == "steady" else burstiness
    gaps = rng.gamma(1 / uneven, uneven, need)
    at = np.cumsum(gaps) - gaps[0] * rng.random()
    at = at[at < expected]
    if shape == "diurnal":
        edges, cumulative = _day(expected, duration_s, peak)
        seconds = np.interp(at, cumulative, edges)
    else:
        seconds = at / rate
    if not len(seconds):
        seconds = np.array([duration_s * rng.random()])
    lengths = [_lengths(rng, mean, sigma, len(seconds)) for mean in (mean_prompt, mean_output)]
    return Trace(seconds, lengths[0], lengths[1], shape)


def day_course(peak: float, bins: int = 96) -> Float:
    """Rate over mean in the bins of a day: float64 [bins], mean 1, largest ``peak``: a low night, a broad day, and
    narrow peaks morning and evening, as chat services see."""
    hours = (np.arange(bins) + 0.5) * 24 / bins
    base = 0.25 + 0.75 * np.clip(np.sin((hours - 7) / 15 * np.pi), 0, None)
    spikes = np.exp(-(((hours - 10.5) / 0.5) ** 2)) + 0.6 * np.exp(-(((hours - 20) / 0.7) ** 2))
    low, high = 0.0, 1e4
    for _ in range(80):  # how much of the spikes makes the largest over the mean ``peak``
        middle = (low + high) / 2
        course = base + middle * spikes
        low, high = (middle, high) if course.max() / course.mean() < peak else (low, middle)
    course = base + low * spikes
    return np.asarray(course / course.mean())


def _day(expected: float, duration_s: float, peak: float) -> tuple[Float, Float]:
    course = day_course(peak)
    edges = np.linspace(0, duration_s, len(course) + 1)
    return edges, np.concatenate([[0.0], np.cumsum(course / course.sum() * expected)])


def _lengths(rng: np.random.Generator, mean: float, sigma: float, count: int) -> Int64:
    drawn = mean * rng.lognormal(-(sigma**2) / 2, sigma, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def whole_hours(hours: int) -> float:
    """Seconds of 1..240 hours. Raises ScalingError."""
    return 3600.0 * whole("hours", hours, 1, 240)
