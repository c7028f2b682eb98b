"""From the times of single requests to the numbers that are reported. Pure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 90, 95, 99)


@dataclass(slots=True, kw_only=True)
class Record:
    """What was seen of one request. Times: seconds of one monotonic clock."""

    due: float = 0.0
    """When it should have been sent; what the user waits counts from here, also when the client was late."""
    sent: float = 0.0
    marks: list[float] = field(default_factory=list)
    """When each piece of the answer came."""
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted: bool = True
    """False: the server did not say how many tokens there were, and pieces were counted instead."""
    error: str = ""
    """Kind of failure; empty when the answer came whole."""
    detail: str = ""

    @property
    def ttft(self) -> float:
        """Time to first token, seconds."""
        return self.marks[0] - self.due

    @property
    def e2e(self) -> float:
        """From due to the answer's end, seconds."""
        return self.end - self.due

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds; None for answers of a single one."""
        if self.output_tokens < 2:
            return None
        return (self.marks[-1] - self.marks[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between pieces, seconds: inter-token latency where each piece is a token."""
        return [after - before for before, after in itertools.pairwise(self.marks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request must keep to count as good; None: anything goes. Seconds."""

    ttft: float | None = None
    tpot: float | None = None

    def kept(self, record: Record) -> bool:
        """Whether it was."""
        if self.ttft is not None and record.ttft > self.ttft:
            return False
        tpot = record.tpot
        return self.tpot is None or tpot is None or tpot <= self.tpot


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, between neighbours linear, as numpy's default."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles of seconds, as milliseconds; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    named = {f"p{percent}": percentile(ordered, percent) * 1e3 for percent in PERCENTILES}
    return {"mean": math.fsum(ordered) / len(ordered) * 1e3, **named}


def summarize(records: Sequence[Record], slo: Slo | None = None) -> dict[str, Any]:
    """All numbers of a run, JSON-ready. Latencies are of whole answers only; failures are counted by kind.

    Rates are over the time from the first request's due time to the last one's end.
    """
    whole = [r for r in records if not r.error]
    failed = [r for r in records if r.error]
    duration = max((r.end for r in records), default=0.0) - min((r.due for r in records), default=0.0)
    per_s = 1 / duration if duration > 0 else 0.0
    output, prompt = sum(r.output_tokens for r in whole), sum(r.prompt_tokens for r in whole)
    result: dict[str, Any] = {
        "requests": len(records),
        "succeeded": len(whole),
        "failed": len(failed),
        "errors": dict(Counter(r.error for r in failed).most_common()),
        "error_examples": {r.error: r.detail for r in reversed(failed)},
        "duration_s": duration,
        "requests_per_s": len(whole) * per_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "output_tokens_per_s": output * per_s,
        "total_tokens_per_s": (output + prompt) * per_s,
        "tokens_counted_by": "server" if all(r.counted for r in whole) else "pieces of the stream",
        "ttft_ms": spread([r.ttft for r in whole]),
        "tpot_ms": spread([t for r in whole if (t := r.tpot) is not None]),
        "itl_ms": spread([gap for r in whole for gap in r.gaps]),
        "e2e_ms": spread([r.e2e for r in whole]),
    }
    if slo is not None:
        good = sum(slo.kept(r) for r in whole)
        result["goodput"] = {
            "slo_ttft_ms": None if slo.ttft is None else slo.ttft * 1e3,
            "slo_tpot_ms": None if slo.tpot is None else slo.tpot * 1e3,
            "requests": good,
            "requests_per_s": good * per_s,
            "share": good / len(records) if records else 0.0,
        }
    return result
