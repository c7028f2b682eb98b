"""Figure 11: a day of decisions, the same over other courses of a day, and request by request; for bench_simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from janus_scaling import Candidate, Demand, Target
from janus_simulator import Planner, Scenario, simulate, summarize, synthetic
from janus_simulator.paper import CONTEXT, SAVED
from janus_simulator.report import markdown
from janus_simulator.traces import day_course
from simulator_what_if import Change, Table, TensorParallel, TensorParallelShared, percent, stepped

PEAK = 7.5
"""Highest rate over the mean."""
TOP = 56
"""GPUs at the paper's peak."""


class Sizer:
    """A system's size by rate, remembered to ``step`` of it."""

    def __init__(self, planned: Planner, step: float = 0.01) -> None:
        self.planned, self.step = planned, step
        self._known: dict[int, Candidate | None] = {}
        self._largest: Candidate | None = None

    def __call__(self, rate: float) -> tuple[int, bool]:
        """GPUs, and whether they meet the objective; the size with most tokens/s where none does."""
        key = round(math.log(rate) / self.step)
        if key not in self._known:
            demand = Demand(tokens_per_s=math.exp(self.step * key), context=CONTEXT)
            self._known[key] = self.planned.plan(demand).chosen
        if best := self._known[key]:
            return best.workers, True
        self._largest = self._largest or self.planned.largest()
        return self._largest.workers, False


def sizers(made: Mapping[str, Planner], tpot_ms: float) -> dict[str, Sizer]:
    """By system."""
    return {name: Sizer(p.under(Target(tpot_s=tpot_ms / 1e3))) for name, p in made.items()}


def peak_rate(sizer: Sizer) -> float:
    """Tokens/s that TOP GPUs bear."""
    low, high = 300.0, 60_000.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        best = sizer.planned.plan(Demand(tokens_per_s=middle, context=CONTEXT)).chosen
        low, high = (middle, high) if best and best.workers <= TOP else (low, middle)
    return low


def day(made: Mapping[str, Sizer], peak: float) -> tuple[str, dict[str, Any]]:
    """96 decisions, each for the rate of its 15 minutes."""
    course = day_course(PEAK)
    rates = course / course.max() * peak
    results: dict[str, Any] = {}
    for name, sizer in made.items():
        line = []
        for i, rate in enumerate(rates):
            gpus, met = sizer(float(rate))
            line.append({"at_s": 900.0 * i, "gpus": gpus, "tokens_per_s": rate, "met": met})
        hours = sum(m["gpus"] for m in line) / 4
        results[name] = {"timeline": line, "duration_s": 86_400.0, "gpu_hours": hours}
    table = [["system", "GPUs", "GPU-hours", "janus-aebs saves", "paper", "decisions that no size meets"]]
    ours = results["janus-aebs"]["gpu_hours"]
    for name, r in results.items():
        gpus, unmet = [m["gpus"] for m in r["timeline"]], sum(not m["met"] for m in r["timeline"])
        paper = f"{SAVED[name]:.0%}" if name in SAVED else "7-56 GPUs" if name == "janus-aebs" else "-"
        cells = [f"{min(gpus)}-{max(gpus)}", f"{r['gpu_hours']:.0f}", f"{1 - ours / r['gpu_hours']:.0%}"]
        table.append([name, *cells, paper, str(unmet)])
    return markdown(table), results


def courses() -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Rates of 96 quarters of an hour with the same peak over the mean: a shape, raised to the power that gives it."""
    hours = (np.arange(96) + 0.5) / 4
    shapes = {
        "one hump": np.sin((hours - 6) / 12 * np.pi),
        "one hour's peak on a constant": np.full(96, -1.0),
    }
    shapes["one hour's peak on a constant"][40:44] = 0.0
    for seed in range(3):
        rng, walk = np.random.default_rng(seed), np.zeros(96)
        for i in range(1, 96):
            walk[i] = 0.9 * walk[i - 1] + rng.standard_normal()
        shapes[f"random, hours long, {seed}"] = walk
    shapes["random, each decision its own"] = np.random.default_rng(3).standard_normal(96)
    found = {}
    for name, shape in shapes.items():
        low, high = 0.0, 100.0
        for _ in range(60):
            power = (low + high) / 2
            course = np.exp(power * (shape - shape.max()))
            low, high = (power, high) if 1 / course.mean() < PEAK else (low, power)
        found[name] = course
    return found


def what_if(made: Mapping[str, Sizer], peak: float) -> Table:
    """GPU-hours saved on other courses, and with other assumptions on this one. Rates to 4% here."""
    table = Table(percent)
    made = {name: Sizer(sizer.planned, 0.04) for name, sizer in made.items()}
    course = day_course(PEAK) / day_course(PEAK).max()

    def hours(sizer: Sizer, rates: Any, most: int = 4096) -> float:
        return sum(gpus if met else min(gpus, most) for gpus, met in (sizer(float(r)) for r in rates * peak))

    def saved(system: str, rates: Any, sizer: Sizer | None = None, most: int = 4096) -> float:
        return 1 - hours(made["janus-aebs"], rates) / hours(sizer or made[system], rates, most)

    def changed(system: str, change: Change) -> Sizer:
        planned = made[system].planned
        return Sizer(planned.timed(change(planned.performance)), 0.04)

    for system, paper in SAVED.items():
        ours = saved(system, course)
        for text, rates in courses().items():
            table.add(
                f"11: GPU-hours, {system}", f"the day: {text}", (paper, paper), ours, saved(system, rates)
            )
    ours = saved("megascale", course)
    text = f"a decision that no size meets runs {TOP} GPUs"
    table.add(
        "11: GPU-hours, megascale",
        text,
        (SAVED["megascale"],) * 2,
        ours,
        saved("megascale", course, most=TOP),
    )
    for text, kind in (("shared by its GPUs", TensorParallelShared), ("paid by each GPU", TensorParallel)):
        other = saved("sglang", course, changed("sglang", stepped(kind)))
        text = f"SGLang tensor-parallel; a token's calibrated time {text}"
        table.add("11: GPU-hours, sglang", text, (SAVED["sglang"],) * 2, saved("sglang", course), other)
    return table


def bursts(made: Mapping[str, Sizer], rate: float) -> str:
    """Requests one by one: ten minutes at a quarter of the day's peak, bursts included."""
    trace = synthetic("bursty", rate=rate / 256 / 4, duration_s=600, seed=1)
    table = [["system", "GPUs", "tokens/s/GPU", "requests within the objective", "TPOT p50 / p95, ms"]]
    for name, sizer in made.items():
        outcome = simulate(trace, sizer.planned, Scenario(headroom=1.25))
        found = summarize(trace, outcome, sizer.planned.setting.target)
        tpot = found["tpot_ms"]
        table.append(
            [name, f"{found['gpus']['most']}", f"{found['tokens_per_s_per_gpu']:.0f}", f"{found['slo_attainment']:.1%}",
             f"{tpot['p50']:.0f} / {tpot['p95']:.0f}"]
        )  # fmt: skip
    return markdown(table)
