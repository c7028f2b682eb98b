"""A cohort that stands still though all of its members answer: a new epoch starts its steps anew. Pure.

What no one foresaw, a frame that was lost or a wake-up that never came, would otherwise hold every stream for ever,
and a repeated step costs a second. Whom others wait for again then, while he himself waits for nobody, has to go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from janus_runtime.records import CohortRecord, Lease

from janus_scheduler.cuts import Pair

FIRST_S = 20.0
"""So long one member waits for the same step before the cohort is formed anew: far longer than any step; twice as
long each time that it was in vain, since the step may just be slow."""
LONGEST_S = 640.0


@dataclass(frozen=True, slots=True)
class Found:
    """The cohort in force stands still."""

    reason: str
    """Who has waited for whom, for people."""
    pairs: frozenset[Pair] = frozenset()
    """From the second time on: links to believe cut (janus_scheduler.cuts)."""


class Standstill:
    """Follows who waits, and for how long."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._epoch = 0
        self._patience = FIRST_S
        self._calm_since: float | None = None

    def found(self, leases: Iterable[Lease], cohort: CohortRecord, now: float) -> Found | None:
        """What stands still in the cohort in force at ``now`` (monotonic seconds); None while nothing does."""
        names = {m.member: m.worker_id for m in (*cohort.attention, *cohort.moe)}
        waiting = {
            w.member: w.waiting_for
            for w in leases
            if w.member in names and w.epoch == cohort.epoch and w.waiting_for
        }
        if cohort.epoch != self._epoch:
            self._epoch, self._since = cohort.epoch, {}
        self._since = {member: self._since.get(member, now) for member in waiting}
        self._calm(bool(waiting), now)
        longest = min(self._since, key=lambda m: (self._since[m], names[m]), default=None)
        if longest is None or now - self._since[longest] < self._patience:
            return None
        again, waited = self._patience > FIRST_S, now - self._since[longest]
        self._patience, self._since = min(2 * self._patience, LONGEST_S), {}
        whom = ", ".join(names.get(m, f"member {m}") for m in waiting[longest])
        reason = f"{names[longest]} has waited {waited:.0f} s for {whom}"
        return Found(reason, _pairs(waiting, cohort) if again else frozenset())

    def _calm(self, waiting: bool, now: float) -> None:
        """Patience is as at first once nobody has waited for as long."""
        if waiting:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= FIRST_S:
            self._patience = FIRST_S


def _pairs(waiting: dict[int, tuple[int, ...]], cohort: CohortRecord) -> frozenset[Pair]:
    """Who waits, and for whom of the other role that waits for nobody."""
    attention, moe = ({m.member for m in role} for role in (cohort.attention, cohort.moe))
    return frozenset(
        (waiter, awaited) if waiter in attention else (awaited, waiter)
        for waiter, members in waiting.items()
        for awaited in members
        if awaited not in waiting and (waiter in attention) == (awaited in moe)
    )
