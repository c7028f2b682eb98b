"""Systems as policies: what each may choose, how it schedules experts, and how its workers talk.

| system | scheduling, placement | router, exchange | sizes it may have |
| --- | --- | --- | --- |
| janus | optimal or aebs, by load | MoE side, two phases | any (n_a, n_e) |
| sglang | tokens balanced over replicas, by load | with attention, all-to-all | whole model on 8, 16, 32, 64 devices |
| megascale | random replica, round-robin | attention side, one phase | for each n_e the n_a that balances best |
| xdeepserve | EPLB: tokens balanced, by load | attention side, two phases | attention and MoE together in steps of 4 |

They are models of what the paper says of these systems, on the same coefficients: their kernels, overlap of
micro-batches and other merits are not in them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from janus_placement import LayerRouting
from janus_scaling import (
    AMaxEstimator,
    Bounds,
    Candidate,
    Coefficients,
    Demand,
    Exchange,
    HardwareProfile,
    ModelShape,
    PerformanceModel,
    Plan,
    Problem,
    ScalingError,
    Target,
    roofline,
    solve,
)
from janus_scaling.checks import choice
from janus_scaling.solver import most_streams, ranked

TIERS = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A policy."""

    name: str
    policy: str
    strategy: str
    gating: str
    phases: int = 2
    colocated: bool = False
    tiers: tuple[int, ...] = ()
    """Sizes of a monolithic system."""
    step: int = 1
    """Workers of both pools together come in multiples of it."""
    balanced: bool = False
    """Only the n_a whose attention time is nearest to MoE's, for each n_e."""

    def rule(self, candidate: Candidate) -> str:
        """Why the system would not have this candidate; ''."""
        if self.tiers and candidate.workers not in self.tiers:
            return f"{candidate.workers} devices are no tier of {self.name}"
        if candidate.workers % self.step:
            return f"{candidate.workers} workers: {self.name} goes in steps of {self.step}"
        return ""


SYSTEMS = {
    s.name: s
    for s in (
        System(name="janus", policy="optimal", strategy="load-balanced", gating="moe"),
        System(name="janus-aebs", policy="aebs", strategy="coactivation", gating="moe"),
        System(
            name="sglang", policy="token-balanced", strategy="load-balanced", gating="attention", colocated=True,
            tiers=TIERS,
        ),
        System(
            name="megascale", policy="random", strategy="round-robin", gating="attention", phases=1, balanced=True,
        ),
        System(name="xdeepserve", policy="token-balanced", strategy="load-balanced", gating="attention", step=4),
    )
}  # fmt: skip
"""By name. ``janus-aebs`` is the paper's Janus: its schedule and placement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the systems are compared on."""

    model: ModelShape
    routing: Sequence[LayerRouting]
    target: Target
    attention: HardwareProfile
    moe: HardwareProfile
    coefficients: Coefficients | None = None
    """None: the roofline of the profiles."""
    bounds: Bounds = field(default_factory=lambda: Bounds(max_attention=32, max_moe=32))
    seed: int = 0
    slots: int = 0
    """C; 0: as many as fit."""
    batches: int = 32
    """Batches that each point of an a_max table is the mean of."""


class Planner:
    """One system in one setting: plans by demand, remembered; a_max tables are made once."""

    def __init__(self, system: System, setting: Setting) -> None:
        self.system = system
        self.setting = setting
        model = setting.model
        self.performance = PerformanceModel(
            model=model,
            coefficients=setting.coefficients or roofline(model, setting.attention, setting.moe),
            exchange=Exchange(
                row_bytes=model.row_bytes, top_k=model.top_k, gating=system.gating, phases=system.phases,
                hardware=min(setting.attention, setting.moe, key=lambda hw: hw.network_bandwidth),
            ),
        )  # fmt: skip
        if not system.colocated:
            slots = setting.slots or model.slots(setting.moe.usable_bytes)
            if not slots:
                raise ScalingError(
                    "moe",
                    setting.moe.name,
                    f"devices with {model.slot_bytes / 1e9:.1f} GB for a slot of {model.name}",
                )
            self._problems = [self._problem(slots, setting.bounds)]
        else:
            self._problems = self._tiers()

    def _problem(self, slots: int, bounds: Bounds) -> Problem:
        setting, system = self.setting, self.system
        estimator = AMaxEstimator(
            setting.routing, slots, policy=system.policy, strategy=system.strategy, batches=setting.batches,
            largest=2048, seed=setting.seed,
        )  # fmt: skip
        return Problem(
            performance=self.performance, a_max=estimator, attention=setting.attention, moe=setting.moe,
            slots=slots, target=setting.target, bounds=bounds, colocated=system.colocated, rule=self._rules(),
        )  # fmt: skip

    def _rules(self) -> Callable[[Candidate], str] | None:
        """The system's own conditions; None where it has none."""
        system = self.system
        return self._rule if system.tiers or system.step > 1 or system.balanced else None

    def _rule(self, candidate: Candidate) -> str:
        """Why the system would not have the candidate; ''."""
        if (reason := self.system.rule(candidate)) or not self.system.balanced:
            return reason
        c, n_a, moe = self.performance.coefficients, candidate.n_a, candidate.time.moe

        def off(n: int) -> float:
            # Context is left out: what it costs scales with n as the tokens do.
            seconds = self.setting.model.layers * max(c.c_a, c.alpha * candidate.batch / n)
            return abs(math.log(seconds / moe))

        better = min((n for n in (n_a - 1, n_a, n_a + 1) if n), key=lambda n: (off(n), n))
        return "" if better == n_a else f"{better} attention workers would balance attention and MoE better"

    def _tiers(self) -> list[Problem]:
        """A monolithic tier holds every expert once, evenly; what is left of its memory is cache."""
        model, found = self.setting.model, []
        for size in self.system.tiers:
            slots = -(-model.num_experts // size)
            needed = model.attention_bytes + slots * model.slot_bytes
            if needed > self.setting.attention.usable_bytes:
                continue
            bounds = dataclasses.replace(
                self.setting.bounds, min_attention=size, max_attention=size, min_moe=size, max_moe=size
            )
            found.append(self._problem(slots, bounds))
        if not found:
            raise ScalingError(
                "attention",
                self.setting.attention.name,
                f"devices that hold a part of {model.name} and its attention",
            )
        return found

    def under(self, target: Target) -> Planner:
        """The same, its a_max tables shared, under another objective."""
        made = copy.copy(self)
        made.setting = dataclasses.replace(self.setting, target=target)
        made._problems = [dataclasses.replace(p, target=target, rule=made._rules()) for p in self._problems]
        return made

    def timed(self, performance: PerformanceModel) -> Planner:
        """The same, its a_max tables shared, with steps that ``performance`` times."""
        made = copy.copy(self)
        made.performance = performance
        made._problems = [
            dataclasses.replace(p, performance=performance, rule=made._rules()) for p in self._problems
        ]
        return made

    @property
    def slots(self) -> int:
        """C, slots per worker and layer; of a monolithic system, its smallest tier's."""
        return self._problems[0].slots

    def plan(self, demand: Demand | None = None, *, batch: float | None = None) -> Plan:
        """As janus_scaling.solve, over all tiers."""
        plans = [solve(problem, demand, batch=batch) for problem in self._problems]
        if len(plans) == 1:
            return plans[0]
        candidates = [c for plan in plans for c in plan.candidates]
        return ranked(candidates, demand.tokens_per_s if demand is not None and batch is None else math.inf)

    def largest(self) -> Candidate:
        """What runs when nothing meets the target: most tokens per second of all that the system may have."""
        plan = self.plan(Demand(tokens_per_s=1e12))
        allowed = [
            c for c in plan.candidates if not self.system.rule(c) and c.batch and c.tpot_s
        ] or plan.candidates
        return max(allowed, key=lambda c: (c.batch / c.tpot_s if c.tpot_s else 0.0, -c.workers))

    def step_seconds(self, n_a: int, n_e: int) -> Callable[[float, float, float], float]:
        """(batch, prompt tokens, context) -> seconds of a step on these sizes."""
        problem = next(
            (p for p in self._problems if p.bounds.max_moe == n_e)
            if self.system.colocated
            else iter(self._problems)
        )
        a_max, performance, colocated = problem.a_max, self.performance, self.system.colocated

        def seconds(batch: float, prompt: float, context: float) -> float:
            peak = a_max(n_e, batch + prompt)
            return performance.step(n_a, n_e, batch, context, peak, prompt=prompt, colocated=colocated).total

        return seconds

    def most_streams(self, n_a: int, context: float) -> int:
        """Streams whose cache fits."""
        problem = self._problems[0]
        if self.system.colocated:
            problem = next(p for p in self._problems if p.bounds.max_moe == n_a)
        most = most_streams(problem, Demand(tokens_per_s=0.0, context=context), n_a)
        return int(min(self.setting.bounds.max_batch, most))


def planner(name: str, setting: Setting) -> Planner:
    """A system by name. Raises ScalingError."""
    return Planner(SYSTEMS[choice("system", name, tuple(SYSTEMS))], setting)
