"""What the mesh does now, from the workers' cumulative counters; pure functions.

Attention workers report ``requests, prompt_tokens, generated_tokens, steps, step_seconds, attention_seconds,
exchange_seconds``; MoE workers ``steps, moe_seconds, a_max_sum, layer_passes``. A counter that falls was
started again from 0 by a restarted worker.
"""

from __future__ import annotations

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
    leases: Iterable[Lease], samples: Mapping[str, Sequence[StatsSample]], *, now_s: float, window_s: float
) -> Observation:
    """``samples`` by worker id, oldest first, those of the window; ``now_s`` on the same clock as theirs.

    A rate divides a worker's increase by the time since its first sample, so that a worker that has just
    started is not taken for a slow one, and one that fell silent is not taken for a busy one.
    """
    leases = list(leases)
    attention = [samples.get(w.worker_id, ()) for w in leases if w.role is Role.ATTENTION]
    moe = [samples.get(w.worker_id, ()) for w in leases if w.role is Role.MOE]
    firsts = [s[0].time_s for s in (*attention, *moe) if s]
    step_mean = _mean(attention, "step_seconds", "steps")
    return Observation(
        window_seconds=min(window_s, max(0.0, now_s - min(firsts))) if firsts else 0.0,
        requests_per_second=_rate(attention, "requests", now_s),
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


def _rate(workers: Iterable[Sequence[StatsSample]], name: str, now_s: float) -> float:
    total = 0.0
    for samples in workers:
        if samples and now_s > samples[0].time_s:
            total += increase(samples, name) / (now_s - samples[0].time_s)
    return total


def _mean(workers: Sequence[Sequence[StatsSample]], name: str, per: str) -> float:
    count = sum(increase(samples, per) for samples in workers)
    return sum(increase(samples, name) for samples in workers) / count if count else 0.0
