"""From demand to sizes: the solver's problem put together from what is known of the mesh. Pure but for its tables."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from janus_placement import LayerRouting
from janus_runtime.records import Lease, Role
from janus_scaling import (
    AMaxEstimator,
    Bounds,
    Candidate,
    Demand,
    HardwareProfile,
    ModelShape,
    PerformanceModel,
    Plan,
    Problem,
    ScalingError,
    Target,
    solve,
    synthetic_layers,
)

from janus_autoscaler.measure import Interval
from janus_autoscaler.objective import Objective

TABLE_LAYERS = 4
"""Layers that stand for all in the table of a_max."""
CORRECTION = (0.5, 2.0)
"""How far measurement may move the table: beyond that something else is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What the workers' leases and reports say of capacity."""

    slots: int
    """C, least of the MoE workers'; 0: unknown, all experts."""
    streams_each: float = math.inf
    cached_each: float = 0.0
    prefill_tokens: int = 512


def mesh_of(leases: Sequence[Lease], latest: Mapping[str, Mapping[str, float]]) -> Mesh:
    """From leases and each worker's latest report."""
    slots = [lease.slots for lease in leases if lease.role is Role.MOE and lease.slots]
    reports = [latest.get(w.worker_id, {}) for w in leases if w.role is Role.ATTENTION]
    streams = [r["sequences_capacity"] for r in reports if r.get("sequences_capacity", 0) >= 1]
    cached = [r["kv_tokens_capacity"] for r in reports if r.get("kv_tokens_capacity", 0) >= 1]
    return Mesh(
        slots=min(slots, default=0), streams_each=min(streams, default=math.inf),
        cached_each=min(cached, default=0.0),
    )  # fmt: skip


class AMaxTable:
    """a_max(n_e, B) from the mesh's own recent routing, corrected by what its steps had; synthetic before that."""

    def __init__(
        self, model: ModelShape, slots: int, *, min_replicas: int = 1, policy: str = "optimal"
    ) -> None:
        self._model, self.slots = model, slots
        self._min_replicas, self.policy = min_replicas, policy
        self.correction = 1.0
        self.source = "synthetic routing"
        self._recent: AMaxEstimator | None = None

    def _made(self, layers: Sequence[LayerRouting]) -> AMaxEstimator:
        return AMaxEstimator(
            layers, self.slots, policy=self.policy, min_replicas=self._min_replicas, batches=32, largest=1024
        )

    @cached_property
    def _synthetic(self) -> AMaxEstimator:
        model = self._model
        return self._made(synthetic_layers(model.num_experts, model.top_k, layers=2, skew=0.5, topic=0.5))

    @property
    def _estimator(self) -> AMaxEstimator:
        return self._recent or self._synthetic

    def rebuild(self, layers: Sequence[LayerRouting], sizes: Sequence[int] = ()) -> None:
        """From routing of all layers, some of which are taken; ``sizes``: rows to make at once."""
        chosen = layers[:: max(1, -(-len(layers) // TABLE_LAYERS))]
        made = self._made(chosen)
        for n_e in sizes:
            made(n_e, 1.0)
        self._recent, self.source = made, f"recent routing of {len(layers)} layers"

    def prepare(self, sizes: Iterable[int], seconds: float) -> None:
        """Make rows of ``sizes`` that are not made yet, for about that long: so that a decision need not."""
        until = time.monotonic() + seconds
        for n_e in sizes:
            self._estimator.means(n_e)
            if time.monotonic() > until:
                return

    def learn(self, known: Sequence[Interval]) -> None:
        """Correct by measured a_max: the mesh's placement and luck are not the table's."""
        ratios = [
            i.a_max / self._estimator(i.n_e, i.cohort_tokens) for i in known if i.a_max >= 1 and not i.split
        ]
        if ratios:
            low, high = CORRECTION
            ratios.sort()
            measured = min(high, max(low, ratios[len(ratios) // 2]))
            self.correction += 0.3 * (measured - self.correction)

    def means(self, n_e: int) -> list[float]:
        """At 1, 2, 4, ... tokens."""
        return [max(1.0, self.correction * mean) for mean in self._estimator.means(n_e)]

    def __call__(self, n_e: int, tokens: float) -> float:
        """Expected a_max."""
        return max(1.0, self.correction * self._estimator(n_e, tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The solver's answer."""

    plan: Plan | None
    best: Candidate | None
    """The chosen one, or the one that comes nearest."""
    met: bool
    status: str


def floor_of(model: ModelShape, slots: int, objective: Objective, spare: tuple[int, int]) -> tuple[int, int]:
    """Fewest workers of each pool: the objective's, those that hold every expert, and one beside the spares."""
    copies = spare[1] + 1
    hold = -(-model.num_experts * copies // slots) if slots else 1
    return max(objective.min_attention, 1 + spare[0]), max(objective.min_moe, hold, copies)


def plan_for(
    demand: Demand,
    objective: Objective,
    *,
    performance: PerformanceModel,
    a_max: AMaxTable,
    mesh: Mesh,
    hardware: tuple[HardwareProfile, HardwareProfile],
    spare: tuple[int, int],
    margin: float,
    burst: float = 0.0,
) -> Verdict:
    """Solve; never raises: a problem that cannot be posed is a status."""
    try:
        bounds = Bounds(
            min_attention=objective.min_attention, max_attention=objective.max_attention, min_moe=objective.min_moe,
            max_moe=objective.max_moe, spare_attention=spare[0], spare_moe=spare[1],
            streams_each=mesh.streams_each, cached_each=mesh.cached_each, prefill_tokens=mesh.prefill_tokens,
            burst=burst,
        )  # fmt: skip
        target = Target(
            tpot_s=margin * objective.tpot_ms / 1e3,
            ttft_s=objective.ttft_ms / 1e3 if objective.ttft_ms else math.inf,
        )
        problem = Problem(
            performance=performance, a_max=a_max, attention=hardware[0], moe=hardware[1],
            slots=a_max.slots, target=target, bounds=bounds,
        )  # fmt: skip
        plan = solve(_with_cache(problem), demand)
    except ScalingError as error:
        return Verdict(plan=None, best=None, met=False, status=f"no plan: {error}")
    best = plan.best_effort()
    if best is None:
        reason = plan.candidates[0].reason if plan.candidates else "there is none"
        return Verdict(plan=plan, best=None, met=False, status=f"no candidate can run: {reason}")
    if plan.chosen is not None:
        status = (
            f"{best.n_a} attention + {best.n_e} MoE: TPOT {1e3 * best.tpot_s:.1f} ms predicted, "
            f"{1e3 * target.tpot_s:.1f} ms planned for ({margin:.2f} of the objective)"
        )
    else:
        status = (
            f"no size within bounds meets the objective; {best.n_a} attention + {best.n_e} MoE comes nearest: "
            f"{best.reason}"
        )
    return Verdict(plan=plan, best=best, met=plan.chosen is not None, status=status)


def _with_cache(problem: Problem) -> Problem:
    """A worker that told how large its cache is has its weights in memory: they need not be counted again."""
    if not problem.bounds.cached_each:
        return problem
    roomy = [dataclasses.replace(h, memory_bytes=1e18) for h in (problem.attention, problem.moe)]
    return dataclasses.replace(problem, attention=roomy[0], moe=roomy[1])
