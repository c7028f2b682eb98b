"""The solver (paper, section 3.5, Algorithm 2): both pool sizes, by exhaustive search, and why the others lost.

Order among feasible candidates: least cost, then fewest workers, then least TPOT, then fewest attention workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from janus_scaling.checks import ScalingError, number, whole
from janus_scaling.comm import Exchange
from janus_scaling.demand import Demand
from janus_scaling.performance import NO_TIME, PerformanceModel, StepTime
from janus_scaling.profiles import HardwareProfile
from janus_scaling.search import search, tabled

AMax = Callable[[int, float], float]
"""(n_e, tokens of a step) -> expected a_max."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What must hold. Raises ScalingError."""

    tpot_s: float
    ttft_s: float = float("inf")

    def __post_init__(self) -> None:
        number("tpot_s", self.tpot_s, 0, 3600, above=True)
        number("ttft_s", self.ttft_s, 0, float("inf"), above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Sizes that may be chosen, and how many losses a plan must bear. Raises ScalingError."""

    max_attention: int = 64
    max_moe: int = 64
    min_attention: int = 1
    min_moe: int = 1
    spare_attention: int = 0
    """The objective holds with this many attention workers lost."""
    spare_moe: int = 0
    """The same of MoE workers; every expert then has a replica more than this on distinct instances."""
    max_batch: int = 8192
    """B_max: where the search for B ends."""
    prefill_tokens: int = 512
    """Prompt tokens that a step takes per attention worker."""
    burst: float = 0.0
    """TPOT must hold with this many standard deviations more streams than the mean, arrivals being Poisson's; where a
    number of streams is asked for, with that number."""
    streams_each: float = float("inf")
    """Streams that an attention worker's batch takes."""
    cached_each: float = 0.0
    """Tokens that an attention worker's KV cache holds; 0: as many as its memory does."""

    def __post_init__(self) -> None:
        for pool in ("attention", "moe"):
            least = whole(f"min_{pool}", getattr(self, f"min_{pool}"), 1, 4096)
            whole(f"max_{pool}", getattr(self, f"max_{pool}"), least, 4096)
            whole(f"spare_{pool}", getattr(self, f"spare_{pool}"), 0, 4095)
        whole("max_batch", self.max_batch, 1, 1 << 20)
        whole("prefill_tokens", self.prefill_tokens, 1, 1 << 20)
        number("burst", self.burst, 0, 10)
        number("streams_each", self.streams_each, 1, float("inf"))
        number("cached_each", self.cached_each, 0, 1e15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything but the demand."""

    performance: PerformanceModel
    a_max: AMax
    attention: HardwareProfile
    moe: HardwareProfile
    slots: int
    """C, slots per MoE worker and layer."""
    target: Target
    bounds: Bounds = field(default_factory=Bounds)
    colocated: bool = False
    """One pool whose workers hold both (a monolithic system): candidates are (n, n), and cost n."""
    rule: Callable[[Candidate], str] | None = None
    """A further condition: why a candidate is not to be taken, or ''."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Sizes, what they are predicted to do, and what speaks against them."""

    n_a: int
    n_e: int
    workers: int
    cost: float
    """Price of an hour."""
    batch: float = 0.0
    """B, streams decoding at once."""
    time: StepTime = NO_TIME
    a_max: float = 0.0
    ttft_s: float = 0.0
    reason: str = ""
    """Why it is not feasible; ''."""

    @property
    def feasible(self) -> bool:
        """Whether everything asked for holds."""
        return not self.reason

    @property
    def tpot_s(self) -> float:
        """Predicted time per output token."""
        return self.time.total

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller is better (module docstring)."""
        return self.cost, self.workers, self.tpot_s, self.n_a

    @property
    def tokens_per_s_per_worker(self) -> float:
        """Output tokens per second and worker, streams never lacking."""
        return self.batch / self.tpot_s / self.workers if self.tpot_s else 0.0


class Plan:
    """The best candidate, or None, and all of them."""

    def __init__(self, chosen: Candidate | None, made: Callable[[], tuple[Candidate, ...]]) -> None:
        self.chosen = chosen
        self._made = made

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The feasible, the best first, then the others, the nearest first; made when first looked at."""
        return self._made()

    def why_not(self, candidate: Candidate) -> str:
        """Why ``candidate`` was not chosen; '' for the chosen one."""
        best = self.chosen
        if candidate.reason or best is None or candidate is best:
            return candidate.reason
        if candidate.cost > best.cost:
            return f"costs {candidate.cost:g}, {candidate.cost - best.cost:g} more"
        if candidate.workers > best.workers:
            return f"{candidate.workers} workers at the same cost, {candidate.workers - best.workers} more"
        return f"TPOT {1e3 * candidate.tpot_s:.1f} ms at the same cost, against {1e3 * best.tpot_s:.1f} ms"

    def best_effort(self, slack: float = 0.05) -> Candidate | None:
        """The chosen one; else the least costly of those that come nearest, within ``slack`` of the nearest.

        Nearest: sustains most of the rate, then least TPOT. None where no candidate could run at all.
        """
        if self.chosen is not None:
            return self.chosen
        able = [c for c in self.candidates if c.tpot_s > 0]
        if not able:
            return None
        # The first is the nearest (:func:`ranked`); one that sustains the rate has its B by Little's law.
        nearest = able[0]
        served = nearest.batch / nearest.tpot_s
        near = [
            c for c in able
            if c.batch / c.tpot_s >= served * (1 - slack) and c.tpot_s <= nearest.tpot_s * (1 + slack)
        ]  # fmt: skip
        return min(near, key=lambda c: c.order)


def little(
    tpot: Callable[[float], float], rate: float, most: float, *, tolerance: float = 1e-3
) -> float | None:
    """B* = rate x TPOT(B*), bracketed on [1, most]; None where the rate cannot be sustained.

    Below one stream at a time the answer is 1. Where several B fit, one of them; TPOT is nearly concave in B, so
    that in practice there is one. Bisection, with a secant's guess (Illinois) where it is better: TPOT is nearly
    linear in B, and the guess then takes a third of the evaluations.
    """
    low, high = 1.0, float(most)
    below, above = rate * tpot(low) - low, rate * tpot(high) - high
    if below <= 0:
        return 1.0
    if above > 0:
        return None
    side, guesses = 0, 0
    while high - low > tolerance * high:
        guesses += 1
        guess = (low * above - high * below) / (above - below) if below > above else low
        # Near an end a guess gets nowhere, and many guesses mean that it does not help: halve.
        margin = 0.4 * tolerance * high
        middle = min(max(guess, low + margin), high - margin) if guesses % 4 else (low + high) / 2
        value = rate * tpot(middle) - middle
        if value > 0:
            low, below = middle, value
            above, side = (above / 2, 1) if side == 1 else (above, 1)
        else:
            high, above = middle, value
            below, side = (below / 2, -1) if side == -1 else (below, -1)
    return high


def solve(problem: Problem, demand: Demand | None = None, *, batch: float | None = None) -> Plan:
    """The least costly sizes that meet the target, for a demand or for a fixed number of streams at once.

    With ``batch``, the demand counts only for its context and its prompt tokens per output token. Raises
    ScalingError when neither is given, or when no size within bounds can hold the model.
    """
    if demand is None and batch is None:
        raise ScalingError("demand and batch", "neither", "one of them")
    if batch is not None:
        number("batch", batch, 1, 1 << 20)
    rate = demand.tokens_per_s if demand is not None and batch is None else float("inf")
    demand = demand or Demand(tokens_per_s=0.0)
    asked = list(sizes(problem))
    if not _at_once(problem):
        return ranked([evaluate(problem, n_a, n_e, demand, batch=batch) for n_a, n_e in asked], rate)
    most = np.array([most_streams(problem, demand, n_a - problem.bounds.spare_attention) for n_a, _ in asked])
    found = search(problem, asked, demand, most, batch=batch)

    def candidate(index: int) -> Candidate:
        known = float(found.batch[index])
        return _judged(problem, *asked[index], demand, None if math.isnan(known) else known)

    # Rounding may differ by a hair, and a rule speaks one by one: the first that this judgement takes too.
    chosen = next((c for c in map(candidate, found.order) if c.feasible), None)

    def made() -> tuple[Candidate, ...]:
        rest = (
            candidate(i) for i in range(len(asked)) if chosen is None or asked[i] != (chosen.n_a, chosen.n_e)
        )
        return ranked([*([chosen] if chosen else []), *rest], rate).candidates

    return Plan(chosen, made)


def _at_once(problem: Problem) -> bool:
    """Whether :func:`search` says what :func:`evaluate` does: not where models of another kind are to be asked."""
    plain = type(problem.performance) is PerformanceModel and type(problem.performance.exchange) is Exchange
    return plain and not (problem.colocated or _weights(problem)) and tabled(problem.a_max) is not None


def ranked(candidates: Iterable[Candidate], rate: float) -> Plan:
    """A plan from candidates: the feasible in order, then the others, those nearest to sustaining ``rate`` first."""

    def key(c: Candidate) -> tuple[float, ...]:
        if c.feasible:
            return (0.0, *c.order)
        sustained = min(rate, c.batch / c.tpot_s) if c.tpot_s else 0.0
        return 1.0, -sustained, c.tpot_s, c.workers, c.n_a

    found = tuple(sorted(candidates, key=key))
    return Plan(found[0] if found and found[0].feasible else None, lambda: found)


def sizes(problem: Problem) -> Iterable[tuple[int, int]]:
    """Candidates: n_e from the fewest instances that hold every expert as often as losses ask."""
    bounds, experts = problem.bounds, problem.performance.model.num_experts
    copies = bounds.spare_moe + 1
    least = max(bounds.min_moe, -(-experts * copies // problem.slots) if problem.slots else 4097, copies)
    if least > bounds.max_moe:
        raise ScalingError(
            "max_moe", bounds.max_moe,
            f"{least} or more: {experts} experts x {copies} replicas in {problem.slots} slots a worker",
        )  # fmt: skip
    if problem.colocated:
        low = max(least, bounds.min_attention)
        return [(n, n) for n in range(low, min(bounds.max_attention, bounds.max_moe) + 1)]
    return [
        (n_a, n_e)
        for n_a in range(max(bounds.min_attention, 1 + bounds.spare_attention), bounds.max_attention + 1)
        for n_e in range(least, bounds.max_moe + 1)
    ]


def evaluate(
    problem: Problem, n_a: int, n_e: int, demand: Demand | None = None, *, batch: float | None = None
) -> Candidate:
    """One candidate."""
    demand = demand or Demand(tokens_per_s=0.0)
    found = batch
    if batch is None and not _weights(problem):
        live_a, step = n_a - problem.bounds.spare_attention, _step(problem, n_a, n_e, demand)
        found = _streams(problem, demand, live_a, step)
        if (
            found is not None
        ):  # Little's law gives the mean; with independent arrivals the variance is as large
            burst = problem.bounds.burst * found**0.5
            found = min(max(found + burst, demand.streams), most_streams(problem, demand, live_a))
    return _judged(problem, n_a, n_e, demand, found)


def _step(problem: Problem, n_a: int, n_e: int, demand: Demand) -> Callable[[float], StepTime]:
    """Time of a step of streams, the spares lost: the objective must hold then."""
    live_a, live_e = n_a - problem.bounds.spare_attention, n_e - problem.bounds.spare_moe
    share = demand.prompt_share

    def step(streams: float) -> StepTime:
        return problem.performance.step(
            live_a, live_e, streams, demand.context, problem.a_max(live_e, streams * (1 + share)),
            prompt=streams * share, colocated=problem.colocated,
        )  # fmt: skip

    return step


def _judged(problem: Problem, n_a: int, n_e: int, demand: Demand, found: float | None) -> Candidate:
    """A candidate with ``found`` streams at once; None: they would pile up."""
    bounds, target = problem.bounds, problem.target
    live_a, live_e = n_a - bounds.spare_attention, n_e - bounds.spare_moe
    share, step = demand.prompt_share, _step(problem, n_a, n_e, demand)
    workers = n_a if problem.colocated else n_a + n_e
    cost = n_a * problem.attention.price + (0.0 if problem.colocated else n_e * problem.moe.price)
    base = Candidate(n_a=n_a, n_e=n_e, workers=workers, cost=cost)
    if reason := _weights(problem):
        return replace(base, reason=reason)
    if found is None:
        most = min(float(bounds.max_batch), most_streams(problem, demand, live_a))
        return replace(
            base, batch=most, time=step(most), a_max=problem.a_max(live_e, most * (1 + share)),
            reason=f"cannot sustain {demand.tokens_per_s:.4g} tokens/s: {most:.0f} streams are all that fit",
        )  # fmt: skip
    time = step(found)
    ttft = _ttft(bounds, demand, live_a, time.total)
    made = replace(
        base, batch=found, time=time, a_max=problem.a_max(live_e, found * (1 + share)), ttft_s=ttft
    )
    reason = ""
    if found > (most := most_streams(problem, demand, live_a)):
        reason = f"attention memory: {found:.0f} streams x {demand.context:.0f} tokens; {most:.0f} fit"
    elif time.total > target.tpot_s:
        reason = f"TPOT {1e3 * time.total:.1f} ms above {1e3 * target.tpot_s:g} ms"
    elif ttft > target.ttft_s:
        reason = f"TTFT {1e3 * ttft:.0f} ms above {1e3 * target.ttft_s:g} ms"
    reason = reason or (problem.rule(made) if problem.rule else "")
    return replace(made, reason=reason)


def _streams(
    problem: Problem, demand: Demand, live_a: int, step: Callable[[float], StepTime]
) -> float | None:
    most = max(1.0, min(float(problem.bounds.max_batch), most_streams(problem, demand, live_a)))
    return little(lambda streams: step(streams).total, demand.tokens_per_s, most)


def _weights(problem: Problem) -> str:
    """Why the weights do not fit, or ''."""
    model = problem.performance.model
    experts = problem.slots * model.slot_bytes
    pools = (
        [("a worker", problem.attention, model.attention_bytes + experts)]
        if problem.colocated
        else [
            ("an attention worker", problem.attention, model.attention_bytes),
            ("a MoE worker", problem.moe, experts),
        ]
    )
    for who, hardware, needed in pools:
        if needed > hardware.usable_bytes:
            return (
                f"memory: the weights of {who} are {needed / 1e9:.1f} GB; {hardware.name} has "
                f"{hardware.usable_bytes / 1e9:.1f} GB for them"
            )
    return ""


def most_streams(problem: Problem, demand: Demand, live_a: int) -> float:
    """Streams whose KV cache fits beside the attention workers' weights, and that their batches take."""
    model, bounds = problem.performance.model, problem.bounds
    if bounds.cached_each:
        return live_a * min(bounds.streams_each, bounds.cached_each // max(1.0, demand.context))
    held = model.attention_bytes + (problem.slots * model.slot_bytes if problem.colocated else 0.0)
    room = max(0.0, problem.attention.usable_bytes - held)
    return live_a * min(bounds.streams_each, room // (model.cache_bytes_per_token * max(1.0, demand.context)))


def _ttft(bounds: Bounds, demand: Demand, live_a: int, step_s: float) -> float:
    """Half a step until one begins, the steps that the prompt takes, and the queue for them (M/D/1)."""
    budget = float(bounds.prefill_tokens)
    load = demand.prompt_tokens_per_s * step_s / (budget * live_a)
    if load >= 1:
        return float("inf")
    chunks = max(1.0, demand.prompt_length / budget)
    return step_s * (0.5 + chunks + chunks * load / (2 * (1 - load)))
