"""Links that are cut between two live workers: each waits for the other, and neither will ever hear. Pure.

A slow worker is waited for but waits for nobody, so it is never taken for one. One of the two has to go: the cohort
goes on without it, and it is tried again after a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from janus_runtime.records import CohortRecord, Lease, Role

Pair = tuple[int, int]
"""Members: an attention worker, an MoE worker."""

FIRST_S = 60.0
"""How long one of a pair is left out at first; twice as long each time that the link turns out to be cut still."""
LONGEST_S = 960.0


def cut_pairs(leases: Iterable[Lease], cohort: CohortRecord) -> set[Pair]:
    """Pairs of the cohort in force of whom each has said, in its epoch, that it waits for the other."""
    waiting = {w.member: set(w.waiting_for) for w in leases if w.epoch == cohort.epoch and w.waiting_for}
    return {
        (a.member, m.member)
        for a in cohort.attention
        for m in cohort.moe
        if m.member in waiting.get(a.member, ()) and a.member in waiting.get(m.member, ())
    }


def without_cut(leases: Sequence[Lease], pairs: Iterable[Pair]) -> tuple[list[Lease], tuple[str, ...]]:
    """Leases of workers that all reach each other, and why each of the others is left out.

    Whoever has most cut links goes first, an MoE worker before an attention worker; but none without which there
    would be no attention worker, or too few slots for all experts.
    """
    staying = {w.member: w for w in leases}
    left = {pair for pair in pairs if all(member in staying for member in pair)}
    reasons: list[str] = []
    while left:
        count = Counter(member for pair in left for member in pair)
        order = sorted(
            count, key=lambda m: (-count[m], staying[m].role is not Role.MOE, staying[m].worker_id)
        )
        gone = next((m for m in order if _dispensable(staying[m], staying.values())), None)
        if gone is None:
            names = ", ".join(f"{staying[a].worker_id} and {staying[m].worker_id}" for a, m in sorted(left))
            return list(staying.values()), (*reasons, f"cut off from each other, but both needed: {names}")
        others = sorted(staying[m].worker_id for pair in left if gone in pair for m in pair if m != gone)
        name = staying.pop(gone).worker_id
        reasons.append(f"{name}: its link to {', '.join(others)} is cut (waited for in vain)")
        left = {pair for pair in left if gone not in pair}
    return list(staying.values()), tuple(reasons)


def _dispensable(worker: Lease, all_: Iterable[Lease]) -> bool:
    others = [w for w in all_ if w.role is worker.role and w.member != worker.member]
    if worker.role is Role.ATTENTION:
        return bool(others)
    return sum(min(w.slots, w.num_experts) for w in others) >= worker.num_experts


class Cuts:
    """Remembers which links were found cut, and for how long to believe it."""

    def __init__(self) -> None:
        self._until: dict[Pair, float] = {}
        self._length: dict[Pair, float] = {}

    def found(self, pairs: Iterable[Pair], now: float) -> set[Pair]:
        """Links to believe cut at ``now`` (monotonic), with those just found."""
        for pair in pairs:
            if self._until.get(pair, 0.0) <= now:
                length = self._length[pair] = min(2 * self._length.get(pair, FIRST_S / 2), LONGEST_S)
                self._until[pair] = now + length
        return {pair for pair, until in self._until.items() if until > now}

    def forget(self, members: Iterable[int]) -> None:
        """Only these members are there still; others never come back under their numbers."""
        here = set(members)
        for table in (self._until, self._length):
            for pair in [p for p in table if not here.issuperset(p)]:
                del table[pair]
