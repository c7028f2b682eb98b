"""Which attention worker gets a sequence: the least loaded of the current cohort. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An attention worker of the cohort in force."""

    member: int
    """Its incarnation's number."""
    in_flight: int
    """Sequences that this gateway has there now."""
    reported: int = 0
    """Sequences running and waiting there, as its lease said last."""
    reported_own: int = 0
    """How many of them were this gateway's when the lease was read."""
    usable: bool = True
    """Its lease is there and not draining."""
    retry_at: float = 0.0
    """Monotonic time before which it is avoided, because a call to it failed."""

    @property
    def load(self) -> int:
        """This gateway's sequences, counted exactly, and the others', as last reported."""
        return self.in_flight + max(0, self.reported - self.reported_own)


def choose(candidates: Sequence[Candidate], now: float, turn: int = 0) -> Candidate | None:
    """The candidate with the least load; ``turn`` rotates among equals. None: all are to be avoided now.

    Workers that are draining or whose lease is gone are taken only when no other is in the cohort: the
    cohort record is the authority, and Redis may be away.
    """
    now_callable = [c for c in candidates if c.retry_at <= now]
    pool = [c for c in now_callable if c.usable] or now_callable
    if not pool:
        return None
    least = min(c.load for c in pool)
    equal = [c for c in pool if c.load == least]
    return equal[turn % len(equal)]
