"""What sizes that somebody has in mind would come to: TPOT, and a_max by placement and schedule."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from janus_placement import STRATEGIES, LayerRouting, PlacementError, Pool, expected_a_max, place, to_hosted
from janus_placement.search import Budget, lower_bounds
from janus_runtime.errors import NotFound
from janus_scaling import Candidate, Plan
from janus_simulator import Setting
from rich.table import Table

from janus_cli.errors import Failure
from janus_cli.recent_routing import RecentRouting, recent_routing
from janus_cli.rundir import RunDir
from janus_cli.view import connect

POLICIES = ("optimal", "aebs")
LAYERS = 4
"""Layers of recorded routing that stand for all."""
MOST_BATCH = 4096
_SEARCH_S = 5.0


class Size(click.ParamType):
    """``2x8``: attention and MoE workers."""

    name = "AxE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,4})[xX](\d{1,4})", str(value).strip())
        if not found or not all(int(n) for n in found.groups()):
            self.fail(f"{value!r} is no size; expected attention x MoE workers, e.g. 2x8", param, ctx)
        return int(found[1]), int(found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRow:
    """A placement strategy on pools of one size."""

    strategy: str
    a_max: dict[str, float]
    """By schedule, on batches that the placement was not made from; mean over layers."""


def placements(
    routing: Sequence[LayerRouting], instances: int, slots: int, batch: float, *, min_replicas: int = 1
) -> tuple[list[PlacementRow], float]:
    """Every strategy, and the mean bound that no placement or schedule gets below. Raises PlacementError."""
    tokens = max(1, min(MOST_BATCH, round(batch)))
    sums = {(s, p): 0.0 for s in STRATEGIES for p in POLICIES}
    bound, count = 0.0, 0
    for index, layer in enumerate(routing[:: max(1, -(-len(routing) // LAYERS))]):
        pool = Pool(num_experts=layer.num_experts, slots=(slots,) * instances, min_replicas=min_replicas)
        half, unseen = layer.halves()
        known, fresh = half.draw([tokens], 256, index), unseen.draw([tokens], 256, index + 1)
        count += 1
        for strategy in STRATEGIES:
            made = place(pool, half, known, strategy, budget=Budget(seconds=_SEARCH_S), start=index)
            for policy in POLICIES:
                hosted = to_hosted(made.placement, layer.num_experts)
                sums[strategy, policy] += expected_a_max(hosted, fresh, policy)
        bound += float(lower_bounds(fresh, instances).mean())
    rows = [PlacementRow(strategy=s, a_max={p: sums[s, p] / count for p in POLICIES}) for s in STRATEGIES]
    return rows, bound / count


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A size's answer."""

    candidate: Candidate
    why_not: str
    """'' when it is the one that would be chosen."""
    placements: list[PlacementRow]
    bound: float


def ask(plan: Plan, setting: Setting, slots: int, sizes: Sequence[tuple[int, int]]) -> list[WhatIf]:
    """Raises Failure for a size that the plan does not have, or that cannot hold the experts."""
    found = []
    for n_a, n_e in sizes:
        candidate = next((c for c in plan.candidates if (c.n_a, c.n_e) == (n_a, n_e)), None)
        if candidate is None:
            known = [c.n_e for c in plan.candidates]
            raise Failure(
                f"--what-if = {n_a}x{n_e}; allowed: 1..{setting.bounds.max_attention} attention and "
                f"{min(known, default=1)}..{setting.bounds.max_moe} MoE workers (--max-attention, --max-moe)"
            )
        try:
            rows, bound = placements(
                setting.routing, n_e, slots, candidate.batch, min_replicas=setting.bounds.spare_moe + 1
            )
        except PlacementError as error:
            raise Failure(f"--what-if = {n_a}x{n_e}: {error}") from error
        found.append(
            WhatIf(candidate=candidate, why_not=plan.why_not(candidate), placements=rows, bound=bound)
        )
    return found


def table(answers: Sequence[WhatIf]) -> Table:
    """A row for each size and placement."""
    shown = Table(
        "size", "streams", "TPOT, ms", "", "placement", *POLICIES, "bound", box=None, pad_edge=False
    )
    for answer in answers:
        c = answer.candidate
        head = [
            f"{c.n_a} x {c.n_e}",
            f"{c.batch:.0f}",
            f"{1e3 * c.tpot_s:.1f}",
            answer.why_not or "would be chosen",
        ]
        for row in answer.placements:
            values = [f"{row.a_max[p]:.2f}" for p in POLICIES]
            shown.add_row(*head, row.strategy, *values, f"{answer.bound:.2f}")
            head = [""] * 4
    return shown


def as_json(answers: Sequence[WhatIf]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {
            "attention": a.candidate.n_a, "moe": a.candidate.n_e, "batch": a.candidate.batch,
            "tpot_ms": 1e3 * a.candidate.tpot_s, "feasible": a.candidate.feasible, "why_not": a.why_not,
            "a_max": {row.strategy: row.a_max for row in a.placements}, "bound": a.bound,
        }
        for a in answers
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshNow:
    """What a running mesh knows of its load."""

    routing: RecentRouting
    slots: int


def of_mesh(redis_url: str, namespace: str, num_experts: int) -> MeshNow:
    """Recent routing and the slots of each MoE worker. Raises JanusError, Failure when nothing was reported."""
    now = asyncio.run(_of_mesh(redis_url, namespace, num_experts))
    if not now.routing.layers:
        raise Failure(
            f"no routing of {num_experts} experts was reported in the last minutes: ask the mesh something, and "
            "give its model with --model"
        )
    return now


async def _of_mesh(redis_url: str, namespace: str, num_experts: int) -> MeshNow:
    coordination = await connect(redis_url, namespace)
    try:
        cohort = await coordination.cohort()
        layout = await coordination.layout(cohort.layout_version) if cohort else None
        if layout is None:
            raise NotFound("no layout yet: no cohort has formed", next_step="See `janus status`.")
        return MeshNow(routing=await recent_routing(coordination, num_experts), slots=layout.slots)
    finally:
        await coordination.close()


def with_mesh(setting: Setting, run_dir: RunDir, redis_url: str | None, namespace: str) -> Setting:
    """The setting with a running mesh's routing, and its slots where none were given."""
    if not redis_url:
        mesh = run_dir.read_mesh()
        redis_url, namespace = str(mesh["redis"]), str(mesh["namespace"])
    now = of_mesh(redis_url, namespace, setting.model.num_experts)
    layers = [now.routing.layers[i] for i in sorted(now.routing.layers)]
    if (top_k := layers[0].samples.shape[1]) != setting.model.top_k:
        raise Failure(
            f"the mesh routes to {top_k} experts a token, {setting.model.name} to {setting.model.top_k}"
        )
    chosen = layers[:: max(1, -(-len(layers) // LAYERS))]
    return dataclasses.replace(setting, routing=chosen, slots=setting.slots or now.slots)


__all__ = ["Size", "WhatIf", "as_json", "ask", "placements", "table", "with_mesh"]
