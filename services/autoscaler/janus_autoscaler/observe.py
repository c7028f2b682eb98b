"""What the mesh does now, from the workers' cumulative counters; pure functions.

Attention workers report ``requests, prompt_tokens, generated_tokens, steps, step_seconds, attention_seconds,
exchange_seconds, resumed_requests, finished_requests, finished_tokens, step_tokens, context_tokens``; MoE workers
``steps, moe_seconds, a_max_sum, layer_passes``. A counter that falls was started again from 0 by a restarted worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from janus_runtime.coordination import StatsSample
from janus_runtime.records import Lease, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Demand and step times over a window; a mean is 0 while there is nothing to measure."""

    window_seconds: float = 0.0
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    output_tokens_per_second: float = 0.0
    running: int = 0
    waiting: int = 0
    step_ms_mean: float = 0.0
    attention_ms_mean: float = 0.0
    exchange_ms_mean: float = 0.0
    moe_ms_mean: float = 0.0
    a_max_mean: float = 0.0
    recent_requests_per_second: float = 0.0
    """Of the last ``recent_s`` alone."""
    bursts: tuple[tuple[float, float], ...] = ()
    """(seconds, requests per second): of the last ``recent_s`` and of shorter times, in which a rise shows earlier."""
    finished: float = 0.0
    """Requests that ended."""
    output_tokens_per_request: float = 0.0
    """Of those that ended."""
    context: float = 0.0
    """Tokens that a step's tokens had before them in the cache, on average."""


def increase(samples: Sequence[StatsSample], name: str) -> float:
    """How much a cumulative counter grew over the samples (oldest first), restarts included."""
    total, last = 0.0, None
    for sample in samples:
        value = sample.values.get(name)
        if value is None:
            continue
        if last is not None:
            total += value - last if value >= last else value
        last = value
    return total


def observe(
    leases: Iterable[Lease],
    samples: Mapping[str, Sequence[StatsSample]],
    *,
    now_s: float,
    window_s: float,
    recent_s: float = 0.0,
) -> Observation:
    """``samples`` by worker id, oldest first, those of the window; ``now_s`` on the same clock as theirs.

    A rate divides a worker's increase by the time since its first sample, so that a worker that has just
    started is not taken for a slow one, and one that fell silent is not taken for a busy one. Requests that another
    worker began, and handed over, are not counted again.
    """
    leases = list(leases)
    attention = [samples.get(w.worker_id, ()) for w in leases if w.role is Role.ATTENTION]
    moe = [samples.get(w.worker_id, ()) for w in leases if w.role is Role.MOE]
    firsts = [s[0].time_s for s in (*attention, *moe) if s]
    bursts = tuple(
        (s, _recent(attention, now_s, s)) for s in (recent_s, recent_s / 2, recent_s / 4) if s >= 1
    )
    finished = sum(increase(samples, "finished_requests") for samples in attention)
    step_mean = _mean(attention, "step_seconds", "steps")
    return Observation(
        window_seconds=min(window_s, max(0.0, now_s - min(firsts))) if firsts else 0.0,
        requests_per_second=_arrivals(attention, now_s),
        recent_requests_per_second=bursts[0][1] if bursts else 0.0,
        bursts=bursts,
        finished=finished,
        output_tokens_per_request=_mean(attention, "finished_tokens", "finished_requests"),
        context=_mean(attention, "context_tokens", "step_tokens"),
        prompt_tokens_per_second=_rate(attention, "prompt_tokens", now_s),
        output_tokens_per_second=_rate(attention, "generated_tokens", now_s),
        running=sum(w.running for w in leases if w.role is Role.ATTENTION),
        waiting=sum(w.waiting for w in leases if w.role is Role.ATTENTION),
        step_ms_mean=1000 * step_mean,
        attention_ms_mean=1000 * _mean(attention, "attention_seconds", "steps"),
        exchange_ms_mean=1000 * _mean(attention, "exchange_seconds", "steps"),
        moe_ms_mean=1000 * _mean(moe, "moe_seconds", "steps"),
        a_max_mean=_mean(moe, "a_max_sum", "layer_passes"),
    )


def _arrivals(workers: Sequence[Sequence[StatsSample]], now_s: float, most_s: float = math.inf) -> float:
    rate = _rate(workers, "requests", now_s, most_s) - _rate(workers, "resumed_requests", now_s, most_s)
    return max(0.0, rate)


def _recent(workers: Sequence[Sequence[StatsSample]], now_s: float, seconds: float) -> float:
    return _arrivals([_since(s, now_s - seconds) for s in workers], now_s, most_s=seconds + 1)


def _since(samples: Sequence[StatsSample], time_s: float) -> Sequence[StatsSample]:
    """Those later than ``time_s`` and the last one before it, which they are counted from."""
    first = next((i for i, s in enumerate(samples) if s.time_s > time_s), len(samples))
    return samples[max(0, first - 1) :]


def _rate(
    workers: Iterable[Sequence[StatsSample]], name: str, now_s: float, most_s: float = math.inf
) -> float:
    """``most_s``: a worker that slept before has nothing from before then."""
    total = 0.0
    for samples in workers:
        if samples and now_s > samples[0].time_s:
            total += increase(samples, name) / min(most_s, now_s - samples[0].time_s)
    return total


def _mean(workers: Sequence[Sequence[StatsSample]], name: str, per: str) -> float:
    count = sum(increase(samples, per) for samples in workers)
    return sum(increase(samples, name) for samples in workers) / count if count else 0.0
