"""Measured steps from the workers' reports: what steps were like between two reports of an attention worker. Pure.

Counters are cumulative; workers report about once a second, each in its own time. MoE workers' counters are read at
an attention worker's times by interpolation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from janus_runtime.coordination import StatsSample

Samples = Mapping[str, Sequence[StatsSample]]
"""By worker id, oldest first."""
MIN_STEPS = 3
"""Fewer steps between two reports say little of a step."""
SPLIT = 1.25
"""More passes per layer than this: steps are in two micro-batches."""
MAX_GAP_S = 10.0
"""Reports further apart are of a worker that slept."""
_STEP = (
    "steps", "step_seconds", "attention_seconds", "exchange_seconds", "moe_seconds", "prepare_seconds",
    "deliver_seconds", "step_tokens", "context_tokens", "generated_tokens", "prompt_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Means over the steps of one attention worker between two reports."""

    at_s: float
    n_a: int
    n_e: int
    tokens: float
    """b, tokens of this worker in a step."""
    cohort_tokens: float
    """Tokens of all attention workers in a step."""
    prompt_share: float
    """Of ``tokens``: prompts'."""
    context: float
    """S, tokens that each of them had before it in the cache."""
    a_max: float
    attention_s: float
    """A step's time in attention and dense parts."""
    moe_s: float
    """A step's time in the slowest MoE workers' passes, layer by layer."""
    exchange_s: float
    """A step's time in the exchange beside ``moe_s``, waiting for other attention workers included."""
    once_s: float
    """A step's time before and after the model."""
    generated: float
    """Output tokens in the interval."""
    split: bool = False
    """Whether steps were in two micro-batches: ``a_max`` is then of both."""

    @property
    def step_s(self) -> float:
        """Time of a step: of each of its streams' tokens."""
        return self.attention_s + self.moe_s + self.exchange_s + self.once_s


def intervals(
    attention: Samples, moe: Samples, *, moe_layers: int, epoch: int, n_a: int, n_e: int, since_s: float = 0.0
) -> list[Interval]:
    """Intervals that began at ``since_s`` or later in ``epoch``, of ``n_a`` and ``n_e`` workers; by time.

    Left out: those in which a counter fell (a restart) or was not reported, or few steps were made.
    """
    made = []
    for samples in attention.values():
        for first, last in itertools.pairwise(samples):
            if first.time_s < since_s or last.time_s - first.time_s > MAX_GAP_S:
                continue
            if first.values.get("epoch") != epoch or last.values.get("epoch") != epoch:
                continue
            change = {k: last.values.get(k, np.nan) - first.values.get(k, np.nan) for k in _STEP}
            steps = change["steps"]
            if not all(v >= 0 for v in change.values()) or steps < MIN_STEPS or not change["step_tokens"]:
                continue
            passes = _between(moe, first.time_s, last.time_s)
            if passes is None:
                continue
            # Steps in two micro-batches pass each layer twice: their experts and tokens are those of both.
            lanes = min(2.0, passes[2] / moe_layers)
            lanes = lanes if lanes >= SPLIT else 1.0
            tokens = change["step_tokens"] / steps
            # What of a pass overlaps with attention costs the step nothing.
            moe_s = min(change["moe_seconds"], change["exchange_seconds"]) / steps
            made.append(
                Interval(
                    at_s=last.time_s, n_a=n_a, n_e=n_e, tokens=tokens, cohort_tokens=max(tokens, lanes * passes[0]),
                    prompt_share=min(1.0, change["prompt_tokens"] / change["step_tokens"]),
                    context=change["context_tokens"] / change["step_tokens"], a_max=lanes * passes[1], split=lanes > 1,
                    attention_s=change["attention_seconds"] / steps, moe_s=moe_s,
                    exchange_s=change["exchange_seconds"] / steps - moe_s,
                    once_s=(change["prepare_seconds"] + change["deliver_seconds"]) / steps,
                    generated=change["generated_tokens"],
                )
            )  # fmt: skip
    return sorted(made, key=lambda i: i.at_s)


def _between(moe: Samples, begin_s: float, end_s: float) -> tuple[float, float, float] | None:
    """Tokens and a_max of a pass, and passes of a step, between two times; None where nobody told."""
    passes = tokens = a_max = steps = 0.0
    for samples in moe.values():
        inside = [s for s in samples if begin_s - MAX_GAP_S <= s.time_s <= end_s + MAX_GAP_S]
        if len(inside) < 2 or inside[-1].time_s <= begin_s or inside[0].time_s >= end_s:
            continue
        times = [s.time_s for s in inside]
        grown = []
        for name in ("layer_passes", "tokens", "a_max_sum", "steps"):
            values = [s.values.get(name, 0.0) for s in inside]
            if any(b < a for a, b in itertools.pairwise(values)):
                break  # started again meanwhile
            grown.append(float(np.interp(end_s, times, values) - np.interp(begin_s, times, values)))
        else:
            passes, tokens, a_max, steps = (
                passes + grown[0], tokens + grown[1], a_max + grown[2], steps + grown[3],
            )  # fmt: skip
    return (tokens / passes, a_max / passes, passes / steps) if min(passes, steps) >= 1 else None


def tpot_quantile(made: Sequence[Interval], quantile: float) -> float:
    """Quantile of the time per output token over intervals, each weighing as many tokens as it made; 0 of none."""
    rows = sorted((i.step_s, i.generated) for i in made if i.generated > 0)
    if not rows:
        return 0.0
    weights = np.cumsum([weight for _, weight in rows])
    return rows[int(np.searchsorted(weights, quantile * weights[-1]))][0]
