"""``/api/activity``: what workers count, as the dashboard's pictures need it. Sums since each worker's start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from janus_runtime.records import CohortRecord, Role

from janus_gateway.worker_metrics import Answer

_ATTENTION = (
    "steps", "prompt_tokens", "generated_tokens", "running", "waiting", "kv_tokens_used", "kv_tokens_capacity",
    "step_seconds", "attention_seconds", "exchange_seconds", "moe_seconds", "exchange_bytes_sent",
)  # fmt: skip
_MOE = (
    "layer_passes", "expert_calls", "expert_tokens", "moe_seconds", "wait_seconds", "experts_hosted",
    "exchange_bytes_sent",
)  # fmt: skip


def activity(answers: Sequence[Answer], cohort: CohortRecord | None) -> dict[str, Any]:
    """JSON of the workers that answered; MoE workers in rank order. Pure but for the time in it."""
    ranks = {} if cohort is None else {m.member: rank for rank, m in enumerate(cohort.moe)}
    there = [(lease, stats) for lease, stats in answers if stats is not None]
    moe = sorted(
        ((lease, stats) for lease, stats in there if lease.role is Role.MOE and lease.member in ranks),
        key=lambda pair: ranks[pair[0].member],
    )
    return {
        "time": time.time(),
        "silent": [lease.worker_id for lease, stats in answers if stats is None],
        "attention": [
            _counted(lease.worker_id, stats, _ATTENTION)
            for lease, stats in there
            if lease.role is Role.ATTENTION
        ],
        "moe": [_counted(lease.worker_id, stats, _MOE) for lease, stats in moe],
        "layers": _layers([stats for _, stats in moe]),
    }


def _counted(worker_id: str, stats: Any, names: Sequence[str]) -> dict[str, Any]:
    return {"worker_id": worker_id, **{name: getattr(stats, name) for name in names}}


def _layers(stats: Sequence[Any]) -> list[dict[str, Any]]:
    """Groups of neighbouring MoE layers. All MoE workers see the same schedules, so that one tells of them."""
    if not stats:
        return []
    return [
        {
            "first": group.first_layer,
            "last": group.last_layer,
            "passes": group.passes,
            "a_max_sum": group.a_max_sum,
            "a_max_bound_sum": group.a_max_bound_sum,
            "expert_tokens": [
                list(one.layer_groups[i].expert_tokens) if i < len(one.layer_groups) else [] for one in stats
            ],
        }
        for i, group in enumerate(stats[0].layer_groups)
    ]
