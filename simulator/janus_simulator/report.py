"""What a simulation found: numbers for scripts, a table and a picture for people."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from janus_scaling import Target

from janus_simulator.engine import Outcome
from janus_simulator.traces import Trace

PERCENTILES = (50, 95, 99)


def summarize(trace: Trace, outcome: Outcome, target: Target) -> dict[str, Any]:
    """JSON-ready numbers. A request that never finished misses the target."""
    ttft = outcome.first_s - trace.arrival_s
    steps = np.maximum(1, trace.output - 1)
    tpot = (outcome.end_s - outcome.first_s) / steps
    done = np.isfinite(outcome.end_s)
    kept = done & (np.where(trace.output > 1, tpot, 0.0) <= target.tpot_s) & (ttft <= target.ttft_s)
    tokens = int(trace.output[done].sum())
    hours = outcome.worker_seconds / 3600
    sizes = [m.workers for m in outcome.moments]
    return {
        "requests": len(trace),
        "finished": int(done.sum()),
        "duration_s": outcome.until_s,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / outcome.until_s,
        "gpu_hours": hours,
        "tokens_per_s_per_gpu": tokens / outcome.worker_seconds if outcome.worker_seconds else 0.0,
        "slo": {"tpot_ms": 1e3 * target.tpot_s, "ttft_ms": _finite(1e3 * target.ttft_s)},
        "slo_attainment": float(kept.mean()),
        "tpot_ms": _spread(1e3 * tpot[done & (trace.output > 1)]),
        "ttft_ms": _spread(1e3 * ttft[np.isfinite(ttft)]),
        "gpus": {"least": min(sizes), "most": max(sizes), "decisions": len(sizes)},
        "changes": sum((a.n_a, a.n_e) != (b.n_a, b.n_e) for a, b in itertools.pairwise(outcome.moments)),
        "unmet_decisions": sum(not m.met for m in outcome.moments),
        "steps": outcome.steps,
        "timeline": [
            {"at_s": m.at_s, "n_a": m.n_a, "n_e": m.n_e, "gpus": m.workers, "streams": m.streams,
             "waiting": m.waiting, "tokens_per_s": m.tokens_per_s, "met": m.met}
            for m in outcome.moments
        ],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = {"mean": float(values.mean())}
    return found | {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A table, header first: a line per system."""
    head = [
        "system",
        "GPU-hours",
        "GPUs",
        "tokens/s/GPU",
        "SLO kept",
        "TPOT p50/p95, ms",
        "TTFT p95, ms",
        "unmet",
    ]
    made = [head]
    for name, r in results.items():
        tpot, ttft = r["tpot_ms"], r["ttft_ms"]
        made.append(
            [
                name,
                f"{r['gpu_hours']:.1f}",
                f"{r['gpus']['least']}-{r['gpus']['most']}",
                f"{r['tokens_per_s_per_gpu']:.1f}",
                f"{r['slo_attainment']:.1%}",
                f"{tpot['p50']:.1f} / {tpot['p95']:.1f}" if tpot else "-",
                f"{ttft['p95']:.0f}" if ttft else "-",
                f"{r['unmet_decisions']} of {r['gpus']['decisions']}",
            ]
        )
    return made


def picture(results: Mapping[str, Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Demand and GPUs over time, one line a system. Raises ModuleNotFoundError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=(1, 2), layout="constrained"
    )
    for index, (name, result) in enumerate(results.items()):
        line = result["timeline"]
        hours = [m["at_s"] / 3600 for m in line] + [result["duration_s"] / 3600]
        if not index:
            demand = [m["tokens_per_s"] for m in line]
            top.step(hours, [*demand, demand[-1]], where="post", color="0.3")
        gpus = [m["gpus"] for m in line]
        bottom.step(
            hours, [*gpus, gpus[-1]], where="post", label=f"{name}, {result['gpu_hours']:.0f} GPU-hours"
        )
    top.set_ylabel("demand, tokens/s")
    bottom.set_ylabel("GPUs")
    bottom.set_xlabel("hours")
    bottom.legend()
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = [f"| {' | '.join(table[0])} |", "| --- " * len(table[0]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table[1:])])
