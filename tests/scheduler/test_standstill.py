"""When a cohort stands still, and what is done about it: pure, and through the publisher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortRecord, Lease
from janus_scheduler.membership import Rules, to_member
from janus_scheduler.publisher import Publisher
from janus_scheduler.standstill import FIRST_S, LONGEST_S, Found, Standstill

Ready = Callable[..., Lease]
NAMES = ("attention-0", "attention-1", "moe-0", "moe-1", "moe-2")


class Watched:
    """Members 1 to 5 in an epoch, who wait for whom they are said to."""

    def __init__(self, ready: Ready) -> None:
        self.leases = [ready(name, number) for number, name in enumerate(NAMES, 1)]
        self.still = Standstill()

    def found(
        self, now: float, epoch: int = 7, *, behind: bool = False, **waits: tuple[int, ...]
    ) -> Found | None:
        of = {name.replace("_", "-"): members for name, members in waits.items()}
        leases = [
            dataclasses.replace(w, epoch=epoch - behind, waiting_for=of.get(w.worker_id, ()))
            for w in self.leases
        ]
        members = [to_member(w) for w in leases]
        cohort = CohortRecord(
            epoch=epoch, layout_version=1, attention=tuple(members[:2]), moe=tuple(members[2:])
        )
        return self.still.found(leases, cohort, now)


@pytest.fixture
def watched(ready: Ready) -> Watched:
    return Watched(ready)


def test_it_takes_one_member_that_waits_without_a_break(watched: Watched) -> None:
    for now in range(0, 100, 15):  # a slow mesh: each waits, but none for long
        assert watched.found(now, attention_0=(3,)) is None
        assert watched.found(now + 8, attention_1=(4,), moe_2=(1,)) is None
    assert watched.found(200, attention_0=(3,)) is None
    assert watched.found(200 + FIRST_S - 1, attention_0=(4,), attention_1=(3,)) is None
    found = watched.found(200 + FIRST_S, attention_0=(3, 4), attention_1=(3,))
    assert found == Found("attention-0 has waited 20 s for moe-0, moe-1"), "a first time blames nobody"


def test_a_new_epoch_and_those_not_in_it_yet_do_not_count(watched: Watched) -> None:
    assert watched.found(0, attention_0=(3,)) is None
    assert watched.found(FIRST_S, epoch=8, attention_0=(3,)) is None
    assert watched.found(2 * FIRST_S - 1, epoch=8, attention_0=(3,)) is None
    assert watched.found(3 * FIRST_S, epoch=8, behind=True, attention_0=(3,)) is None


def test_each_time_in_vain_takes_twice_as_long_until_it_is_calm(watched: Watched) -> None:
    now, times, epoch = 0.0, [], 7
    for _ in range(8):
        began, epoch = now, epoch + 1
        while watched.found(now, epoch, attention_0=(3,)) is None:
            now += 1.0
        times.append(now - began)
    assert times == [20, 40, 80, 160, 320, 640, LONGEST_S, LONGEST_S]
    watched.found(now, epoch)
    watched.found(now + FIRST_S, epoch)
    now += FIRST_S + 1
    assert watched.found(now, epoch, attention_0=(3,)) is None
    assert watched.found(now + FIRST_S, epoch, attention_0=(3,)) is not None


def test_who_is_waited_for_again_and_waits_for_nobody_is_blamed(watched: Watched) -> None:
    def second(**waits: tuple[int, ...]) -> frozenset[tuple[int, int]]:
        watched.still = Standstill()
        for now in (0, FIRST_S):
            watched.found(now, 7, **waits)
        watched.found(FIRST_S + 1, 8, **waits)
        found = watched.found(FIRST_S + 1 + 2 * FIRST_S, 8, **waits)
        assert found is not None
        return found.pairs

    assert second(attention_0=(3,), attention_1=(3,)) == {(1, 3), (2, 3)}
    assert second(attention_0=(3, 4), moe_0=(2,), moe_1=(2,)) == {(2, 3), (2, 4)}
    assert second(attention_0=(3,), moe_0=(1,)) == set(), "a cut link is another matter"
    assert second(moe_0=(4,), attention_0=(3,)) == set(), "of one role: nothing to cut"


@pytest.mark.asyncio
async def test_the_cohort_is_formed_anew_then_without_who_does_not_go_on(
    coordination: Coordination, ready: Ready
) -> None:
    publisher = Publisher(coordination, "scheduler-0", Rules(), settle_s=0.0, lease_ttl_s=5.0)
    keepers = {name: await coordination.register(ready(name)) for name in NAMES}
    await publisher.round(10.0)
    first = await coordination.cohort()
    assert first is not None and len(first.moe) == 3
    stuck = keepers["moe-0"].lease.member

    async def wait_for(epoch: int) -> None:
        for name, keeper in keepers.items():
            await keeper.update(epoch=epoch, waiting_for=() if name == "moe-0" else (stuck,))

    await wait_for(first.epoch)
    for now in (11.0, 12.0, 11.0 + FIRST_S):
        await publisher.round(now)
    second = await coordination.cohort()
    assert second is not None and second.epoch > first.epoch
    assert (second.attention, second.moe) == (first.attention, first.moe)
    assert second.follows == 0, "the step under way is not finished first"
    assert second.layout_version == first.layout_version, "nothing is loaded anew"
    await wait_for(second.epoch)
    for now in (40.0, 40.0 + 2 * FIRST_S, 41.0 + 2 * FIRST_S):
        await publisher.round(now)
    third = await coordination.cohort()
    assert third is not None and [m.worker_id for m in third.moe] == ["moe-1", "moe-2"]
    assert "left out: moe-0" in publisher.status
