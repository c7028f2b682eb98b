"""What each fault cost the streams, and where the time went. Pure: times in, tables out."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STALL_WINDOW_S = 1.5
"""Pauses that begin within this of a fault are put down to it: what was on its way still arrives."""
SILENT_S = 0.5
"""Streams that have had no token for so long stood still already: a fault then comes on top of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that was done to the mesh."""

    at: float
    """Monotonic."""
    kind: str
    """kill, freeze, restart, scale."""
    role: str
    name: str = ""
    enough: bool | None = True
    """Whether ready workers were left that can serve; None: Redis did not answer."""

    def under(self, tokens: Sequence[float]) -> str:
        """What else was the case: ``none left``, ``redis away``, ``on top``, or ``plain``; the first that holds."""
        if self.enough is None and self.role != "redis":
            return "redis away"
        if self.enough is False:
            return "none left"
        place = bisect.bisect_right(tokens, self.at)
        if not place or self.at - tokens[place - 1] > SILENT_S:
            return "on top"
        return "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What one stream noticed of one fault, in seconds."""

    next_s: float
    """To its next token."""
    stall_s: float
    """The longest wait for a token that overlaps the first STALL_WINDOW_S, counted from the fault."""
    epoch_s: float
    """Of the stall, until the first new cohort (0: there was none in it): noticing, deciding, publishing."""
    mesh_s: float
    """From there until any stream had a token: taking up the cohort, loading experts."""
    own_s: float
    """The rest: this stream's way to another worker, its queueing and prefill."""


def wait(at: float, times: Sequence[float], tokens: Sequence[float], epochs: Sequence[float]) -> Wait | None:
    """Of one stream; None when it was not under way. All monotonic and ascending.

    ``times``: its tokens; ``tokens``: those of all streams; ``epochs``: when cohorts were published.
    """
    if not times or times[0] > at or times[-1] <= at:
        return None
    place = bisect.bisect_right(times, at)
    gaps = [
        (max(a, at), b) for a, b in itertools.pairwise(times[place - 1 :]) if max(a, at) < at + STALL_WINDOW_S
    ]
    began, ended = max(gaps, key=lambda gap: gap[1] - gap[0])
    new = [epoch for epoch in epochs if at < epoch < ended]
    published = new[0] if new else began
    after = bisect.bisect_right(tokens, max(published, began))
    first = min(tokens[after], ended) if after < len(tokens) else ended
    return Wait(
        next_s=times[place] - at, stall_s=ended - began, epoch_s=max(0.0, published - began),
        mesh_s=first - max(published, began), own_s=ended - first,
    )  # fmt: skip


def _spread(values: Iterable[float]) -> tuple[float, float, float]:
    values = sorted(values)
    return statistics.median(values), values[int(0.99 * (len(values) - 1))], values[-1]


def table(faults: Sequence[Fault], streams: Sequence[Sequence[float]], epochs: Sequence[float]) -> list[dict]:
    """Rows by kind, role and circumstances, then sums: of kills, of all."""
    tokens = sorted(itertools.chain.from_iterable(streams))
    groups: dict[tuple[str, str, str], tuple[list[Fault], list[Wait]]] = {}
    for fault in faults:
        waits = [w for times in streams if (w := wait(fault.at, times, tokens, epochs)) is not None]
        under = fault.under(tokens)
        keys = [(fault.kind, fault.role, under), ("all", "", "")]
        if fault.kind == "kill":
            keys += [("kill", "any", under), ("kill", "any", "")]
        for key in keys:
            group = groups.setdefault(key, ([], []))
            group[0].append(fault)
            group[1].extend(waits)
    rows = []
    for (kind, role, under), (what, waits) in sorted(groups.items()):
        if not waits:
            continue
        slow = sorted(waits, key=lambda w: w.stall_s)[int(0.99 * (len(waits) - 1))]
        rows.append({
            "kind": kind, "role": role, "under": under, "faults": len(what), "streams": len(waits),
            "next_s": _spread(w.next_s for w in waits), "stall_s": _spread(w.stall_s for w in waits),
            "parts_median_s": tuple(statistics.median(getattr(w, f) for w in waits) for f in _PARTS),
            "parts_p99_s": tuple(getattr(slow, f) for f in _PARTS),
        })  # fmt: skip
    return rows


_PARTS = ("epoch_s", "mesh_s", "own_s")


def shown(rows: Sequence[dict]) -> str:
    """For people."""
    lines = [
        "| fault | under | faults | streams | next token: median, p99, worst | longest wait | p99: epoch, mesh, own |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            f"{row['kind']} {row['role']}".strip(), row["under"], str(row["faults"]), str(row["streams"]),
            *(", ".join(f"{v:.2f}" for v in row[k]) for k in ("next_s", "stall_s", "parts_p99_s")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
