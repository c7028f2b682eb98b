"""The membership decision is pure: leases, cohort and rules in, answer out."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from janus_runtime.records import CohortRecord, Lease, Role, WorkerState
from janus_scheduler.membership import Form, Keep, Rules, Settler, Wait, decide, to_member


def worker(name: str, member: int = 0, **more: Any) -> Lease:
    """A ready worker of a small model; its role is the name's first part."""
    role = Role(name.partition("-")[0])
    fields: dict[str, Any] = {
        "worker_id": name, "member": member, "role": role, "pid": 1, "grpc_address": f"{name}:1",
        "transport": "ucx", "transport_address": "AA==", "model": "tiny float32", "moe_layers": 2,
        "num_experts": 8, "slots": 4 if role is Role.MOE else 0, "state": WorkerState.READY,
    }  # fmt: skip
    return Lease(**{**fields, **more})


def names(leases: tuple[Lease, ...]) -> list[str]:
    return [w.worker_id for w in leases]


def formed(decision: object, epoch: int = 1, **more: Any) -> CohortRecord:
    assert isinstance(decision, Form), decision
    return CohortRecord(
        epoch=epoch,
        attention=tuple(map(to_member, decision.attention)),
        moe=tuple(map(to_member, decision.moe)),
        layout_version=1,
        model=decision.attention[0].model,
        **more,
    )


A0, A1 = worker("attention-0", 1), worker("attention-1", 2)
M0, M1, M2, M10 = (worker(f"moe-{n}", 10 + n) for n in (0, 1, 2, 10))
RULES = Rules()


def test_first_cohort_is_ranked_by_name_whatever_the_order() -> None:
    decision = decide([M10, M2, A1, M0, A0, M1], None, RULES)
    assert isinstance(decision, Form)
    assert names(decision.attention) == ["attention-0", "attention-1"]
    assert names(decision.moe) == ["moe-0", "moe-1", "moe-2", "moe-10"]
    assert decision.reason == "first cohort"


def test_nothing_changes_nothing_happens() -> None:
    record = formed(decide([A0, M0, M1], None, RULES))
    assert isinstance(decide([M1, A0, M0], record, RULES), Keep)
    busy = [dataclasses.replace(w, running=3, waiting=1, epoch=1, detail="stepping") for w in (A0, M0, M1)]
    assert isinstance(decide(busy, record, RULES), Keep)


def test_old_ranks_stay_new_ones_come_last() -> None:
    record = formed(decide([A1, M1, M2], None, RULES))
    decision = decide([A0, A1, M0, M1, M2], record, RULES)
    assert isinstance(decision, Form)
    assert names(decision.attention) == ["attention-1", "attention-0"]
    assert names(decision.moe) == ["moe-1", "moe-2", "moe-0"]
    assert "attention-0, moe-0 joined" in decision.reason


def test_a_restarted_worker_is_a_new_epoch_at_its_old_rank() -> None:
    record = formed(decide([A0, M0, M1, M2], None, RULES))
    decision = decide([A0, dataclasses.replace(M0, member=99), M1, M2], record, RULES)
    assert isinstance(decision, Form)
    assert names(decision.moe) == ["moe-0", "moe-1", "moe-2"]
    assert decision.moe[0].member == 99


def test_a_lost_worker_is_a_new_epoch() -> None:
    record = formed(decide([A0, A1, M0, M1, M2], None, RULES))
    decision = decide([A0, M0, M2], record, Rules(min_attention=2, min_experts=3))
    assert isinstance(decision, Form), "minima are for the first cohort"
    assert names(decision.moe) == ["moe-0", "moe-2"]
    assert "attention-1, moe-1 gone" in decision.reason


def test_minima_hold_the_first_cohort_back_and_say_what_is_missing() -> None:
    starting = worker("moe-5", 30, state=WorkerState.STARTING, detail="mapping weights")
    decision = decide([A0, M0, M1, starting], None, Rules(min_attention=2, min_experts=3))
    assert isinstance(decision, Wait)
    assert "attention workers: 1 of 2 ready" in decision.reason
    assert "MoE workers: 2 of 3 ready [moe-5 starting (mapping weights)]" in decision.reason


def test_a_mesh_that_lost_all_goes_on_with_what_is_enough() -> None:
    """Streams wait for it; those that come later join."""
    record = formed(decide([A0, M0, M1], None, RULES))
    again = [dataclasses.replace(w, member=w.member + 100, slots=8) for w in (A0, M0, M1)]
    decision = decide(again[:2], record, Rules(min_attention=2, min_experts=2))
    assert isinstance(decision, Form) and decision.lost == ("attention-0", "moe-0", "moe-1")


def test_losses_are_told_from_joins_and_drains() -> None:
    record = formed(decide([A0, M0, M1], None, RULES))
    joined = decide([A0, M0, M1, M2], record, RULES)
    assert isinstance(joined, Form) and joined.lost == ()
    lost = decide([A0, M0, M2], record, RULES)
    assert isinstance(lost, Form) and lost.lost == ("moe-1",)
    drained = decide([A0, M0, dataclasses.replace(M1, state=WorkerState.DRAINING), M2], record, RULES)
    assert isinstance(drained, Form) and drained.lost == ()


def test_too_few_slots_wait_for_more_moe_workers() -> None:
    decision = decide([A0, M0], None, RULES)
    assert isinstance(decision, Wait)
    assert (
        "waiting for more MoE workers: 4 expert slots per layer (moe-0 4) cannot hold 8 experts"
        in decision.reason
    )
    many = dataclasses.replace(M0, slots=100)
    assert isinstance(decide([A0, many], None, RULES), Form)
    # 100 slots of one instance hold 8 experts, not 100: a second copy is of no use.
    wide = [dataclasses.replace(M0, slots=100, num_experts=8), M1]
    assert isinstance(decide([A0, *wide], None, RULES), Form)


def test_losing_capacity_keeps_the_old_cohort() -> None:
    record = formed(decide([A0, M0, M1], None, RULES))
    assert isinstance(decide([A0, M1], record, RULES), Wait)
    assert isinstance(decide([M0, M1], record, RULES), Wait)
    assert isinstance(decide([], record, RULES), Wait)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "tiny bfloat16"), ("num_experts", 16), ("moe_layers", 3), ("transport", "inproc")],
)
def test_a_worker_that_differs_is_refused_with_the_difference_named(field: str, value: Any) -> None:
    odd = dataclasses.replace(M2, **{field: value})
    decision = decide([A0, M0, M1, odd], None, RULES)
    assert isinstance(decision, Form)
    assert names(decision.moe) == ["moe-0", "moe-1"]
    (text,) = decision.refused
    assert "moe-2" in text and field in text and repr(value) in text and repr(getattr(M0, field)) in text


def test_the_cohort_in_force_decides_who_differs_not_the_majority() -> None:
    record = formed(decide([A0, M0, M1], None, RULES))
    others = [worker(f"moe-{n}", n, model="other") for n in range(5, 9)]
    decision = decide([A0, M0, M1, *others], record, RULES)
    assert isinstance(decision, Keep) and len(decision.refused) == 4


def test_a_tie_does_not_depend_on_the_order() -> None:
    other = dataclasses.replace(M0, model="other")
    answers = {decide(list(order), None, RULES) for order in ([A0, other], [other, A0])}
    (decision,) = answers
    assert isinstance(decision, Wait) and "MoE workers: 0 of 1" in decision.reason
    assert "moe-0 does not fit attention-0" in decision.refused[0]


@pytest.mark.parametrize(
    "change", [{"slots": 0}, {"num_experts": 0}, {"moe_layers": 0}, {"transport_address": ""}]
)
def test_leases_without_what_a_cohort_needs_are_refused(change: dict[str, Any]) -> None:
    decision = decide([A0, M0, M1, dataclasses.replace(M2, **change)], None, RULES)
    assert isinstance(decision, Form) and names(decision.moe) == ["moe-0", "moe-1"]
    assert "moe-2" in decision.refused[0]


def test_draining() -> None:
    record = formed(decide([A0, A1, M0, M1, M2], None, RULES))
    draining = {"state": WorkerState.DRAINING}
    # An attention worker steps on until its sequences are done and its lease is gone.
    assert isinstance(decide([A0, dataclasses.replace(A1, **draining), M0, M1, M2], record, RULES), Keep)
    # An MoE worker leaves as soon as the others hold every expert ...
    decision = decide([A0, A1, M0, M1, dataclasses.replace(M2, **draining)], record, RULES)
    assert isinstance(decision, Form) and names(decision.moe) == ["moe-0", "moe-1"]
    assert "moe-2 drained" in decision.reason
    # ... and not before.
    assert isinstance(
        decide([A0, A1, M0, *(dataclasses.replace(m, **draining) for m in (M1, M2))], record, RULES), Keep
    )
    # One that never stepped is not taken in.
    assert isinstance(decide([A0, M0, M1, dataclasses.replace(M10, **draining)], None, RULES), Form)


def test_rules_change() -> None:
    record = formed(decide([A0, M0, M1], None, RULES))
    decision = decide([A0, M0, M1], record, Rules(gating="attention", scheduling="aebs"))
    assert isinstance(decision, Form)
    assert decision.reason == "gating is now attention, scheduling is now aebs"


def test_patience_waits_for_members_whose_leases_redis_lost() -> None:
    record = formed(decide([A0, M0, M1, M2], None, RULES))
    decision = decide([A0, M0], record, RULES, patient=True)
    assert isinstance(decision, Wait) and "moe-1, moe-2" in decision.reason
    assert isinstance(decide([A0, M0, M1, M2], record, RULES, patient=True), Keep)
    assert isinstance(decide([A0, M0, M1, M2, A1], record, RULES, patient=True), Form)


def test_gateways_and_schedulers_do_not_count() -> None:
    others = [worker(f"{role}-0", 50) for role in ("gateway", "scheduler", "autoscaler")]
    assert isinstance(decide([M0, M1, *others], None, RULES), Wait)


def test_any_history_ends_in_a_cohort_of_exactly_the_ready_workers() -> None:
    """Random joins, leaves and restarts: every record is sound, and a second look changes nothing."""
    rng = random.Random(7)
    for _ in range(200):
        record, member = None, 100
        pool: dict[str, Lease] = {}
        for _ in range(12):
            name = f"{rng.choice(['attention', 'moe'])}-{rng.randrange(4)}"
            if rng.random() < 0.35:
                pool.pop(name, None)
            else:
                member += 1
                pool[name] = worker(name, member, slots=rng.choice([2, 4, 8]))
            leases = list(pool.values())
            rng.shuffle(leases)
            decision = decide(leases, record, RULES)
            if not isinstance(decision, Form):
                continue
            before = record
            record = formed(decision)
            assert {m.worker_id for m in (*record.attention, *record.moe)} == set(pool)
            assert sum(min(w.slots, 8) for w in decision.moe) >= 8
            assert all(w.role is Role.MOE for w in decision.moe)
            if before is not None:
                old = [m.worker_id for m in before.moe if m.worker_id in pool]
                assert names(decision.moe)[: len(old)] == old
            assert isinstance(decide(list(pool.values()), record, RULES), Keep)


def test_settling_on_a_fake_clock() -> None:
    settler = Settler(0.3)
    assert settler.remaining("a", 10.0) == pytest.approx(0.3)
    assert settler.remaining("a", 10.2) == pytest.approx(0.1)
    assert settler.remaining("b", 10.25) == pytest.approx(0.3)  # another answer: from the beginning
    assert settler.remaining("b", 10.55) == pytest.approx(0.0)
    assert settler.remaining("b", 99.0) == 0.0
    assert settler.remaining("c", 100.0, 0.03) == pytest.approx(0.03)
    assert settler.remaining("c", 100.04, 0.03) == 0.0


def test_a_lost_record_is_no_first_start() -> None:
    rules = Rules(min_attention=2, min_experts=3)
    assert isinstance(decide([A0, M0, M1], None, rules), Wait)
    served = [dataclasses.replace(w, epoch=7) for w in (A0, M0)]
    assert isinstance(decide([*served, M1], None, rules), Form)


def test_patience_is_not_for_the_dead() -> None:
    before = formed(decide([A0, M0, M1, M2], None, RULES))
    waiting = decide([A0, M0, M1], before, RULES, patient=True, dead={999})
    assert isinstance(waiting, Wait) and "moe-2" in waiting.reason
    decision = decide([A0, M0, M1], before, RULES, patient=True, dead={M2.member})
    assert isinstance(decision, Form) and decision.lost == ("moe-2",)


def test_a_drained_attention_worker_leaves_while_it_lives_and_another_stays() -> None:
    before = formed(decide([A0, A1, M0, M1], None, RULES))
    drains = dataclasses.replace(A1, state=WorkerState.DRAINING)
    assert isinstance(decide([A0, drains, M0, M1], before, RULES), Keep)  # it holds streams
    drained = dataclasses.replace(drains, drained=True)
    decision = decide([A0, drained, M0, M1], before, RULES)
    assert isinstance(decision, Form) and names(decision.attention) == ["attention-0"]
    assert decision.lost == () and "attention-1 drained" in decision.reason
    other = dataclasses.replace(A0, state=WorkerState.DRAINING)
    assert isinstance(decide([other, drained, M0, M1], before, RULES), Keep)  # nobody would stay
