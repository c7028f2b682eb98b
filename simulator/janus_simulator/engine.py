"""Discrete-event simulation: requests arrive, wait, have their prompts computed, decode in lockstep, finish.

Time advances by steps, whose length the performance model gives; steps between two events are taken at once. At
each decision the system's planner sizes the pools. No randomness: the trace has it all.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from janus_scaling import Controller, Demand, SeasonalForecast
from janus_scaling.checks import choice, number

from janus_simulator.systems import Planner
from janus_simulator.traces import Trace

Float = np.ndarray[Any, np.dtype[np.float64]]
SIGHTS = ("observed", "forecast", "oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How sizes follow demand. Raises ScalingError."""

    decide_s: float = 900.0
    """Between decisions; the paper's: 15 minutes."""
    start_s: float = 0.0
    """From the decision until added workers serve."""
    sight: str = "oracle"
    """``observed``: plans for the rate since the last decision and what waits. ``forecast``: for that or what earlier
    seasons say of the time until the next one, the larger. ``oracle``: for what will come until then."""
    season_s: float = 86_400.0
    """Of ``forecast``."""
    headroom: float = 1.0
    """Plans are made for this many times the rate."""
    hold_s: float = 0.0
    """Controller: how long a smaller size must have sufficed."""
    overtime_s: float = 3600.0
    """After the last arrival; what has not finished then never does."""

    def __post_init__(self) -> None:
        number("decide_s", self.decide_s, 1, 86_400)
        number("start_s", self.start_s, 0, 86_400)
        number("headroom", self.headroom, 0.1, 100)
        number("hold_s", self.hold_s, 0, 86_400)
        number("season_s", self.season_s, self.decide_s, 1e9)
        number("overtime_s", self.overtime_s, 0, 86_400)
        choice("sight", self.sight, SIGHTS)


@dataclass(frozen=True, slots=True)
class Moment:
    """The system at a decision."""

    at_s: float
    n_a: int
    n_e: int
    workers: int
    streams: int
    waiting: int
    tokens_per_s: float
    """Rate that was planned for."""
    met: bool
    """Whether some size meets the target at that rate."""


@dataclass(slots=True, eq=False)
class Outcome:
    """What happened; NaN: never."""

    first_s: Float
    """float64 [R], time of the first token."""
    end_s: Float
    """float64 [R], time of the last."""
    moments: list[Moment] = field(default_factory=list)
    worker_seconds: float = 0.0
    """Of both pools, from 0 to ``until_s``."""
    busy_s: float = 0.0
    """Time in which there was a step."""
    steps: int = 0
    until_s: float = 0.0


class _Fleet:
    """Sizes in force, and those on their way."""

    def __init__(self, planner: Planner, scenario: Scenario) -> None:
        self.planner = planner
        self.scenario = scenario
        bounds = planner.setting.bounds
        ceiling = (
            max((bounds.max_attention, *planner.system.tiers)),
            max((bounds.max_moe, *planner.system.tiers)),
        )
        self.controller = Controller(ceiling=ceiling, hold_s=scenario.hold_s)
        self.state = self.controller.start()
        self.sizes = (0, 0)
        self.coming: tuple[float, tuple[int, int]] | None = None
        self.charged_s = 0.0
        self.worker_seconds = 0.0
        self._largest: tuple[int, int] | None = None

    def decide(self, now: float, demand: Demand) -> bool:
        """Whether the target can be met at ``demand``."""
        chosen = self.planner.plan(demand).chosen
        if chosen is None:
            if self._largest is None:
                best = self.planner.largest()
                self._largest = best.n_a, best.n_e
            want = self._largest
        else:
            want = chosen.n_a, chosen.n_e
        self.state, decision = self.controller.decide(self.state, now, want)
        grows = decision.add[0] or decision.add[1]
        self.charge(now)
        if self.sizes == (0, 0) or not grows or not self.scenario.start_s:
            self.sizes, self.coming = decision.sizes, None
        else:
            self.coming = now + self.scenario.start_s, decision.sizes
        return chosen is not None

    def arrive(self, now: float) -> bool:
        """Take workers into service that have started."""
        if self.coming is None or now < self.coming[0]:
            return False
        self.charge(now)
        self.sizes, self.coming = self.coming[1], None
        return True

    @property
    def workers(self) -> int:
        """Workers paid for: those starting too."""
        return max(self._count(self.sizes), self._count(self.coming[1]) if self.coming else 0)

    def _count(self, sizes: tuple[int, int]) -> int:
        return sizes[0] if self.planner.system.colocated else sum(sizes)

    def charge(self, now: float) -> None:
        """Count worker time up to ``now``."""
        self.worker_seconds += self.workers * (now - self.charged_s)
        self.charged_s = now


def simulate(
    trace: Trace,
    planner: Planner,
    scenario: Scenario | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Run a trace on a system. ``progress`` hears the simulated time at each decision."""
    scenario = scenario or Scenario()
    arrival, prompt, output = trace.arrival_s.tolist(), trace.prompt.tolist(), trace.output.tolist()
    total = len(arrival)
    out = Outcome(np.full(total, np.nan), np.full(total, np.nan))
    rates = trace.rates(scenario.decide_s)
    mean_prompt = float(trace.prompt.mean())
    mean_context = mean_prompt + float(trace.output.mean()) / 2
    budget_each = planner.setting.bounds.prefill_tokens
    fleet = _Fleet(planner, scenario)
    waiting: deque[int] = deque()
    prefilling: deque[int] = deque()
    left: dict[int, int] = {}
    ends: list[tuple[int, int]] = []  # (step, request): decoding streams by their last step
    now, step, arrived, pending, cached = 0.0, 0, 0, 0, 0.0
    next_decision, cap, budget = 0.0, 1, budget_each
    last_arrived = 0
    seconds: Callable[[float, float, float], float] = lambda batch, prompts, context: 0.0  # noqa: E731
    known: dict[tuple[int, int, int], float] = {}
    forecast = SeasonalForecast(
        season_s=scenario.season_s, phases=max(1, round(scenario.season_s / scenario.decide_s))
    )

    def resize() -> None:
        nonlocal seconds, cap, budget
        n_a, n_e = fleet.sizes
        seconds = planner.step_seconds(n_a, n_e)
        cap = max(1, planner.most_streams(n_a, mean_context))
        budget = budget_each * n_a
        known.clear()

    limit = arrival[-1] + scenario.overtime_s
    while True:
        while arrived < total and arrival[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        if now >= next_decision:
            rate, prompts = _rate(scenario, rates, now, output, prompt, last_arrived, arrived)
            if scenario.sight == "forecast" and now > 0:
                # Rates are of the middle of an interval: the last one's, and the one's to come.
                middle = now - scenario.decide_s / 2
                forecast = forecast.observe(middle, rate)
                expected = max(rate, forecast.predict(middle, scenario.decide_s))
                rate, prompts = expected, prompts * expected / rate if rate else 0.0
            last_arrived = arrived
            demand = Demand(
                tokens_per_s=rate, prompt_tokens_per_s=prompts, context=mean_context, prompt_length=mean_prompt,
                backlog_tokens=float(sum(output[r] for r in waiting)),
            )  # fmt: skip
            met = fleet.decide(now, demand.scaled(scenario.headroom).with_backlog(scenario.decide_s))
            resize()
            streams = len(ends) + len(prefilling)
            out.moments.append(Moment(now, *fleet.sizes, fleet.workers, streams, len(waiting), rate, met))
            next_decision = (now // scenario.decide_s + 1) * scenario.decide_s
            if progress:
                progress(now)
        if fleet.arrive(now):
            resize()
        while waiting and len(ends) + len(prefilling) < cap:
            request = waiting.popleft()
            prefilling.append(request)
            left[request] = prompt[request]
            pending += prompt[request]
        upcoming = min(next_decision, arrival[arrived] if arrived < total else next_decision)
        if fleet.coming:
            upcoming = min(upcoming, fleet.coming[0])
        batch = len(ends)
        if not batch and not prefilling:
            if arrived == total:
                break
            now = max(upcoming, now)
            continue
        if now > limit:
            break
        prompts_now = min(budget, pending)
        context = cached / batch if batch else 0.0
        key = (batch, prompts_now, int(context) >> 5)
        took = known.get(key)
        if took is None:
            took = known[key] = seconds(
                float(batch), float(prompts_now), float((int(context) >> 5 << 5) + 16)
            )
        count = 1
        if not prompts_now:
            count = max(1, min(ends[0][0] - step, int((upcoming - now) / took) + 1))
        now += took * count
        step += count
        out.busy_s += took * count
        cached += batch * count
        pending -= prompts_now
        while prompts_now:
            request = prefilling[0]
            part = min(prompts_now, left[request])
            prompts_now -= part
            left[request] -= part
            if left[request]:
                break
            prefilling.popleft()
            del left[request]
            out.first_s[request] = now
            if output[request] == 1:
                out.end_s[request] = now
            else:
                heapq.heappush(ends, (step + output[request] - 1, request))
                cached += prompt[request]
        while ends and ends[0][0] <= step:
            request = heapq.heappop(ends)[1]
            out.end_s[request] = now
            cached -= prompt[request] + output[request] - 1
    out.steps = step
    out.until_s = max(now, trace.duration_s)
    fleet.charge(out.until_s)
    out.worker_seconds = fleet.worker_seconds
    return out


def _rate(
    scenario: Scenario, rates: tuple[Float, Float], now: float, output: list[int], prompt: list[int],
    since: int, arrived: int,
) -> tuple[float, float]:  # fmt: skip
    """Output and prompt tokens per second to plan for."""
    if scenario.sight == "oracle" or now == 0:
        index = int(now // scenario.decide_s)
        if index >= len(rates[0]):
            return 0.0, 0.0
        return float(rates[0][index]), float(rates[1][index])
    window = scenario.decide_s
    return sum(output[since:arrived]) / window, sum(prompt[since:arrived]) / window
