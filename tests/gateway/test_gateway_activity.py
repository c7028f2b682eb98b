"""/api/activity: workers' counters for the dashboard's pictures."""

from __future__ import annotations

import random
from typing import Any

import httpx
from gateway_fakes import Mesh
from janus_gateway.activity import activity
from janus_runtime.records import CohortMember, CohortRecord, Lease, Role
from janus_wire.v1 import attention_pb2, moe_pb2


def lease(name: str, member: int) -> Lease:
    return Lease(worker_id=name, member=member, role=Role(name.partition("-")[0]), pid=1, grpc_address="x:1")


def moe_stats(draw: random.Random, groups: int) -> Any:
    return moe_pb2.ExpertServiceGetStatsResponse(
        expert_calls=draw.randrange(99),
        layer_groups=[
            moe_pb2.LayerGroupStats(
                first_layer=g, last_layer=g, passes=7, a_max_sum=5 + g, a_max_bound_sum=4,
                expert_tokens=[draw.randrange(9) for _ in range(6)],
            )
            for g in range(groups)
        ],
    )  # fmt: skip


def test_moe_workers_come_in_rank_order_and_the_silent_are_named() -> None:
    draw = random.Random()
    ranked = [
        CohortMember(worker_id=f"moe-{i}", member=m, grpc_address="x:1", transport_address="")
        for i, m in ((2, 30), (0, 10))
    ]
    cohort = CohortRecord(
        epoch=3,
        layout_version=1,
        attention=(),
        moe=tuple(ranked),
        model="m",
        gating="moe",
        scheduling="optimal",
    )
    stats = {name: moe_stats(draw, 2) for name in ("moe-0", "moe-2", "moe-5")}
    answers: list[Any] = [
        *((lease(name, member), stats[name]) for name, member in (("moe-0", 10), ("moe-2", 30), ("moe-5", 50))),
        (lease("attention-0", 7), attention_pb2.AttentionServiceGetStatsResponse(steps=12, step_seconds=0.5)),
        (lease("attention-1", 8), None),
    ]  # fmt: skip
    found = activity(answers, cohort)
    assert [w["worker_id"] for w in found["moe"]] == [
        "moe-2",
        "moe-0",
    ]  # one that is in no cohort has no rank
    assert found["moe"][1]["expert_calls"] == stats["moe-0"].expert_calls
    assert [(w["worker_id"], w["steps"], w["step_seconds"]) for w in found["attention"]] == [
        ("attention-0", 12, 0.5)
    ]
    assert found["silent"] == ["attention-1"]
    assert [(g["first"], g["passes"], g["a_max_sum"], g["a_max_bound_sum"]) for g in found["layers"]] == [
        (0, 7, 5, 4), (1, 7, 6, 4),
    ]  # fmt: skip
    for g in range(2):
        rows = [list(stats[name].layer_groups[g].expert_tokens) for name in ("moe-2", "moe-0")]
        assert found["layers"][g]["expert_tokens"] == rows
    assert activity(answers, None)["layers"] == []


async def test_it_is_served_while_workers_do_not_answer(served: Mesh) -> None:
    async with httpx.AsyncClient(base_url=served.http) as client:
        answer = await client.get("/api/activity")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    assert found["silent"] == ["attention-0"]  # the fake has no GetStats
    assert found["attention"] == found["moe"] == found["layers"] == []
