"""Which links are cut, and who is left out for it: pure, and through the publisher."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable

import pytest
from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortRecord, Lease
from janus_scheduler.cuts import FIRST_S, LONGEST_S, Cuts, cut_pairs, without_cut
from janus_scheduler.membership import Rules, to_member
from janus_scheduler.publisher import Publisher

Ready = Callable[..., Lease]


@pytest.fixture
def workers(ready: Ready) -> dict[str, Lease]:
    names = ("attention-0", "attention-1", "moe-0", "moe-1", "moe-2")
    return {name: ready(name, number, epoch=7) for number, name in enumerate(names, 1)}


def cohort(workers: dict[str, Lease]) -> CohortRecord:
    members = {n: to_member(w) for n, w in workers.items()}
    return CohortRecord(
        epoch=7, layout_version=1, attention=tuple(m for n, m in members.items() if "att" in n),
        moe=tuple(m for n, m in members.items() if "moe" in n),
    )  # fmt: skip


def test_only_who_waits_for_each_other_is_cut_off(workers: dict[str, Lease]) -> None:
    def found(**waits: tuple[int, ...]) -> set[tuple[int, int]]:
        changed = {
            n: dataclasses.replace(w, waiting_for=waits.get(n.replace("-", ""), ()))
            for n, w in workers.items()
        }
        return cut_pairs(changed.values(), cohort(workers))

    assert found(attention0=(4,), attention1=(4,)) == set(), "a straggler waits for nobody"
    assert found(attention0=(4,), moe1=(1,), attention1=(4,), moe0=(1, 2)) == {(1, 4)}
    assert found(attention0=(3, 4), moe0=(2,), moe1=(1, 2), attention1=(3,)) == {(1, 4), (2, 3)}
    stale = dataclasses.replace(workers["attention-0"], waiting_for=(4,), epoch=6)
    other = dataclasses.replace(workers["moe-1"], waiting_for=(1,))
    assert cut_pairs([stale, other], cohort(workers)) == set(), "of another epoch"


def test_the_one_with_most_cuts_goes_and_enough_stay(workers: dict[str, Lease]) -> None:
    leases = list(workers.values())

    def left_out(*pairs: tuple[int, int]) -> set[str]:
        staying, reasons = without_cut(leases, pairs)
        gone = {w.worker_id for w in leases} - {w.worker_id for w in staying}
        assert len(reasons) == len(gone) or any("both needed" in r for r in reasons)
        return gone

    assert left_out() == set()
    assert left_out((1, 4)) == {"moe-1"}
    assert left_out((1, 3), (1, 4), (1, 5)) == {"attention-0"}
    assert left_out((1, 3), (2, 3)) == {"moe-0"}
    # Three of 4 slots for 8 experts: one may go, not two; then an attention worker does.
    assert left_out((1, 3), (2, 3), (1, 4)) == {"moe-0", "attention-0"}
    _, reasons = without_cut([workers["attention-0"], workers["moe-0"], workers["moe-1"]], [(1, 3)])
    assert reasons == ("cut off from each other, but both needed: attention-0 and moe-0",)


def test_random_cuts_leave_a_mesh_that_reaches_itself_or_say_why_not(ready: Ready) -> None:
    rng = random.Random(3)
    for _ in range(300):
        attention = [ready(f"attention-{i}", i + 1) for i in range(rng.randint(1, 4))]
        moe = [ready(f"moe-{i}", 100 + i, slots=rng.choice((2, 4, 8))) for i in range(rng.randint(4, 6))]
        everyone = list(itertools.product((w.member for w in attention), (w.member for w in moe)))
        pairs = set(rng.sample(everyone, rng.randint(0, min(5, len(everyone)))))
        staying, reasons = without_cut([*attention, *moe], pairs)
        here = {w.member for w in staying}
        assert any(w.member in here for w in attention)
        if sum(w.slots for w in moe) >= 8:
            assert sum(w.slots for w in moe if w.member in here) >= 8
        open_ = {pair for pair in pairs if here.issuperset(pair)}
        assert bool(open_) == any("both needed" in reason for reason in reasons)


def test_a_cut_is_believed_for_a_while_longer_each_time() -> None:
    cuts, now, lengths = Cuts(), 100.0, []
    for _ in range(7):
        assert cuts.found({(1, 4)}, now) == {(1, 4)} == cuts.found((), now + FIRST_S - 1)
        began = now
        while cuts.found((), now):
            now += 1.0
        lengths.append(now - began)
    assert lengths == [60, 120, 240, 480, 960, LONGEST_S, LONGEST_S]
    cuts.found({(1, 4), (2, 5)}, now)
    cuts.forget({1, 2, 5})
    assert cuts.found((), now) == {(2, 5)}


@pytest.mark.asyncio
async def test_the_cohort_goes_on_without_one_of_them(coordination: Coordination, ready: Ready) -> None:
    publisher = Publisher(coordination, "scheduler-0", Rules(), settle_s=0.0, lease_ttl_s=5.0)
    names = ("attention-0", "attention-1", "moe-0", "moe-1", "moe-2")
    keepers = {n: await coordination.register(ready(n)) for n in names}
    await publisher.round(10.0)
    first = await coordination.cohort()
    assert first is not None and len(first.moe) == 3
    for one, other in (("attention-0", "moe-1"), ("moe-1", "attention-0")):
        await keepers[one].update(epoch=first.epoch, waiting_for=(keepers[other].lease.member,))
    for now in (11.0, 11.5):
        await publisher.round(now)
    second = await coordination.cohort()
    assert second is not None and [m.worker_id for m in second.moe] == ["moe-0", "moe-2"]
    assert "moe-1: its link to attention-0 is cut" in publisher.status
    for name in names:
        await keepers[name].update(epoch=second.epoch, waiting_for=())
    await publisher.round(12.0)
    assert await coordination.cohort() == second
    for now in (11.0 + FIRST_S, 12.0 + FIRST_S):
        await publisher.round(now)
    third = await coordination.cohort()
    assert third is not None and len(third.moe) == 3, "tried again"
