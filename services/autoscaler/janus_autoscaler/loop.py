"""The loop: observe, learn, plan, decide, act. Of several in a mesh, one acts (janus_autoscaler.office)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from janus_placement import LayerRouting
from janus_placement.window import Report as RoutingReport
from janus_placement.window import ReportError, RoutingWindow
from janus_runtime.coordination import Coordination, StatsSample
from janus_runtime.errors import JanusError
from janus_runtime.records import CohortRecord, Lease, Role
from janus_scaling import (
    Controller,
    Demand,
    Exchange,
    HardwareProfile,
    ModelShape,
    ScalingError,
    SeasonalForecast,
    roofline,
)

from janus_autoscaler.actuators import Actuator, Pool, Sizes
from janus_autoscaler.actuators.base import next_step
from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.demand import demand, idle
from janus_autoscaler.learn import Learner
from janus_autoscaler.measure import Interval, intervals, tpot_quantile
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_autoscaler.observe import Observation, observe
from janus_autoscaler.office import Office
from janus_autoscaler.planning import AMaxTable, Verdict, floor_of, mesh_of, plan_for

log = logging.getLogger("janus.autoscaler")

TABLE_S = 300.0
"""Between tables of a_max from newer routing: what it remembers fades by half in that time, and a table of many experts
takes seconds of processor time."""
PREPARE_S = 0.02
"""Of a decision while nothing is asked, for rows of the table: load finds them made."""
PHASES = 96
LOOKS = 5
"""At the number of streams in an interval: a rise that nobody planned for does not wait for its end."""
_FAILED_S = 30.0
"""After an action failed, the next one waits this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one look at the mesh saw."""

    now_s: float
    leases: tuple[Lease, ...]
    samples: Mapping[str, Sequence[StatsSample]]
    cohort: CohortRecord | None
    observation: Observation

    @property
    def serving(self) -> Sizes:
        """Members of the cohort."""
        return (len(self.cohort.attention), len(self.cohort.moe)) if self.cohort else (0, 0)


@dataclass(slots=True)
class State:
    """What the last decision came to; GetPlan, Explain and the metrics show it."""

    status: str = "no decision yet"
    demand: Demand | None = None
    verdict: Verdict | None = None
    target: Sizes | None = None
    reason: str = ""
    decisions: int = 0
    actions: int = 0
    failed_actions: int = 0
    tpot_p95_s: float = 0.0


class Autoscaler:
    """Give it a model to plan for; without one it only observes."""

    def __init__(
        self,
        settings: AutoscalerSettings,
        coordination: Coordination,
        store: ObjectiveStore,
        *,
        model: ModelShape | None,
        hardware: tuple[HardwareProfile, HardwareProfile],
        actuator: Actuator | None = None,
        office: Office | None = None,
    ) -> None:
        """``office``: what must be held to act; None: nothing must."""
        self.settings = settings
        self.office = office
        self.state = State()
        self.learner: Learner | None = None
        self.serving: Sizes = (0, 0)
        """Members of the cohort at the last decision."""
        self._coordination, self._store = coordination, store
        self._model, self._hardware, self._actuator = model, hardware, actuator
        self._table: AMaxTable | None = None
        self._table_at = -1e18
        self._window: RoutingWindow | None = None
        self._position = "0"
        self._learnt_s = 0.0
        self._news = False
        self._controller_state = Controller().start()
        self._forecast = (
            SeasonalForecast(season_s=settings.season_s, phases=PHASES) if settings.season_s else None
        )
        self._phase: tuple[int, list[float]] = (-1, [])
        self._action: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._complained = ""
        if model is not None:
            exchange = Exchange(row_bytes=model.row_bytes, top_k=model.top_k, hardware=hardware[1], phases=1)
            self.learner = Learner(
                model,
                roofline(model, *hardware),
                exchange,
                shared_cores=settings.shared_cores or float("inf"),
            )
        else:
            self.state.status = "observing only: without --model no plan can be made"

    def describe(self) -> str:
        """Mode and actuator, for the lease and the log."""
        if self.learner is None:
            return self.state.status
        mode, actuator = self.settings.mode, self.settings.actuator
        what = {"off": "observing", "advise": "advising", "act": f"acting through {actuator}"}[mode]
        if mode == "act" and not self.may_act:
            what = f"standing by for {(self.office and self.office.holder) or 'the office'}"
        return f"{what}, every {self.settings.interval_s:g} s"

    @property
    def may_act(self) -> bool:
        """False while another autoscaler is in office."""
        return self.office is None or self.office.held

    async def run(self) -> None:
        """Decide every ``interval_s``, or sooner when streams pile up, until cancelled; never ends by itself."""
        if self.settings.mode == "off" or self.learner is None:
            return
        while True:
            due = time.monotonic() + self.settings.interval_s
            while (left := due - time.monotonic()) > 0:
                await asyncio.sleep(min(left, max(0.5, self.settings.interval_s / LOOKS)))
                with contextlib.suppress(JanusError):  # the decision will say so
                    if await self.piling_up():
                        break
            try:
                await self.decide()
                self._complained = ""
            except JanusError as error:
                if str(error) != self._complained:  # once per cause
                    log.warning("no decision: %s", error)
                self._complained = str(error)
                self.state.status = f"no decision: {error}"
            except Exception:
                log.exception("no decision; sizes stay as they are")
                self.state.status = "no decision: an unexpected error; the log has it"

    async def piling_up(self) -> bool:
        """Whether there are more streams than the sizes in force were planned for, by more than chance.

        The next decision plans for as many as there are, so that this is true once for each rise. While nothing was
        asked, or no sizes are enough, it is the interval's turn.
        """
        verdict = self.state.verdict
        if verdict is None or not verdict.met or verdict.best is None:
            return False
        leases = await self._coordination.workers(Role.ATTENTION)
        planned = verdict.best.batch
        return sum(w.running + w.waiting for w in leases) > planned + max(1.0, 0.5 * planned**0.5)

    async def close(self) -> None:
        """Give up what is under way: the platform finishes what it was asked."""
        if self._action is not None:
            self._action.cancel()
            await asyncio.gather(self._action, return_exceptions=True)
        if self._actuator is not None:
            await self._actuator.close()

    async def look(self) -> View:
        """What the mesh does now. Raises JanusError while Redis is away."""
        settings = self.settings
        leases = [w for w in await self._coordination.workers() if w.role in (Role.ATTENTION, Role.MOE)]
        samples = await self._coordination.read_all_stats(
            [w.worker_id for w in leases], window_s=settings.window_s
        )
        now = time.time()
        seen = observe(leases, samples, now_s=now, window_s=settings.window_s, recent_s=settings.interval_s)
        return View(
            now_s=now, leases=tuple(leases), samples=samples, cohort=await self._coordination.cohort(),
            observation=seen,
        )  # fmt: skip

    async def objective(self) -> Objective:
        """The objective in force."""
        return await self._store.read()

    async def decide(self) -> None:
        """One turn of the loop."""
        assert self.learner is not None and self._model is not None
        view, objective = await self.look(), await self._store.read()
        if view.cohort is None:
            self.state.status = "no decision: there is no cohort yet"
            return
        self.serving = view.serving
        await self._learn(view)
        table = await self._tables(view)
        low = floor_of(self._model, table.slots, objective, self._spare)
        ceiling = (max(low[0], objective.max_attention), max(low[1], objective.max_moe))
        seen = view.observation
        asked = self._expected(view.now_s, demand(
            seen, target_s=objective.tpot_ms / 1e3, lookback_s=self.settings.window_s,
        ))  # fmt: skip
        now = view.serving if self._actuator is None else await self._actuator.sizes()
        if idle(seen) and not asked.tokens_per_s:
            verdict = Verdict(plan=None, best=None, met=True, status="nothing is asked: the floor")
            wanted: Sizes = low
            await asyncio.to_thread(table.prepare, range(low[1], ceiling[1] + 1), PREPARE_S)
        elif self._stands(asked, view, low, now):
            assert self.state.verdict is not None
            verdict, wanted = self.state.verdict, low
        else:
            verdict = await asyncio.to_thread(self._solve, asked, objective, view, table)
            wanted, verdict = self._wanted(verdict, now, objective)
        controller = Controller(
            floor=low, ceiling=ceiling, hold_s=self.settings.hold_s, change_price=self.settings.change_price,
            prices=(self._hardware[0].price, self._hardware[1].price),
        )  # fmt: skip
        # What there is, not what was decided: workers come and go by others' hands too.
        state = dataclasses.replace(self._controller_state, sizes=now)
        self._controller_state, decision = controller.decide(state, time.monotonic(), wanted)
        out = self.state
        out.demand, out.verdict, out.target = asked, verdict, decision.sizes
        out.reason, out.status, out.decisions = decision.reason, verdict.status, out.decisions + 1
        if self.settings.mode == "act" and not self.may_act:
            out.status = f"{self.describe()}; {verdict.status}"
        elif decision.sizes != now:
            log.info("%d x %d -> %d x %d: %s (%s)", *now, *decision.sizes, decision.reason, verdict.status)
        self._act()

    def _wanted(self, verdict: Verdict, now: Sizes, objective: Objective) -> tuple[Sizes, Verdict]:
        """The verdict's sizes, unless what is measured speaks against them."""
        assert self.learner is not None
        if verdict.best is None:
            return now, verdict
        wanted = verdict.best.n_a, verdict.best.n_e
        if not self.learner.learnt.intervals:
            # A profile may be off by any factor: good for a first idea, not for changing what serves.
            text = "no step was measured yet: sizes stay; by the hardware's profile, "
            return now, dataclasses.replace(verdict, status=text + verdict.status)
        if verdict.met and self.state.tpot_p95_s > objective.tpot_ms / 1e3 and sum(wanted) < sum(now):
            text = f"TPOT p95 measured is {1e3 * self.state.tpot_p95_s:.1f} ms: nothing is drained; "
            return now, dataclasses.replace(verdict, status=text + verdict.status)
        return wanted, verdict

    def _stands(self, asked: Demand, view: View, low: Sizes, now: Sizes) -> bool:
        """Whether the floor, that sufficed, is in force, no step was measured since, and no more is asked.

        A load that has ended is in the window for a while, and costs nothing then.
        """
        verdict, before = self.state.verdict, self.state.demand
        return (
            verdict is not None and verdict.met and verdict.best is not None and before is not None
            and not view.observation.running + view.observation.waiting and not self._news
            and low == now == (verdict.best.n_a, verdict.best.n_e)
            and all(a <= b for a, b in zip(astuple(asked), astuple(before), strict=True))
        )  # fmt: skip

    @property
    def _spare(self) -> tuple[int, int]:
        return self.settings.spare_attention, self.settings.spare_moe

    def _solve(self, asked: Demand, objective: Objective, view: View, table: AMaxTable) -> Verdict:
        assert self.learner is not None
        latest = {name: s[-1].values for name, s in view.samples.items() if s}
        return plan_for(
            asked.with_backlog(self.settings.drain_backlog_s), objective,
            performance=self.learner.performance(), a_max=table, mesh=mesh_of(view.leases, latest),
            hardware=self._hardware, spare=self._spare, burst=self.settings.burst,
            margin=self.settings.margin / self.learner.spread,
        )  # fmt: skip

    # -- learning ---------------------------------------------------------------------------------

    async def _learn(self, view: View) -> None:
        """From intervals of the epoch in force that were not seen before."""
        assert self.learner is not None and view.cohort is not None
        new = self._intervals(view, self._learnt_s)
        self._news = bool(new)
        if new:
            self._learnt_s = new[-1].at_s - 1e-3
        table = await self._tables(view)
        self.learner.add(new, table)
        table.learn(new)
        self.state.tpot_p95_s = tpot_quantile(self._intervals(view, 0.0), 0.95)
        await asyncio.to_thread(self.learner.fit)

    def _intervals(self, view: View, since_s: float) -> list[Interval]:
        sides = [
            {w.worker_id: view.samples.get(w.worker_id, ()) for w in view.leases if w.role is role}
            for role in (Role.ATTENTION, Role.MOE)
        ]
        n_a, n_e = view.serving
        epoch = view.cohort.epoch if view.cohort else 0
        return intervals(
            sides[0],
            sides[1],
            moe_layers=self._model.moe_layers if self._model else 1,
            epoch=epoch,
            n_a=n_a,
            n_e=n_e,
            since_s=since_s,
        )

    async def _tables(self, view: View) -> AMaxTable:
        """The table of a_max, made again now and then from newer routing."""
        assert self._model is not None
        slots = mesh_of(view.leases, {}).slots or self._model.num_experts
        policy = view.cohort.scheduling if view.cohort else "optimal"
        if self._table is None or (self._table.slots, self._table.policy) != (slots, policy):
            copies = self.settings.spare_moe + 1
            self._table = AMaxTable(self._model, slots, min_replicas=copies, policy=policy)
            self._table_at = -1e18
        if time.monotonic() - self._table_at < TABLE_S:
            return self._table
        layers = await self._routing()
        if layers:
            self._table_at = time.monotonic()
            await asyncio.to_thread(self._table.rebuild, layers, [view.serving[1]] if view.serving[1] else [])
        return self._table

    async def _routing(self) -> list[LayerRouting]:
        """Of all layers; empty where there is no more than at the last time."""
        assert self._model is not None
        model = self._model
        if self._window is None:
            self._window = RoutingWindow(
                model.num_experts, model.top_k, half_life_s=300.0, clock=time.monotonic
            )
        news = False
        while True:
            self._position, entries = await self._coordination.read_routing(self._position)
            news = news or bool(entries)
            for fields in entries:
                with contextlib.suppress(
                    ReportError
                ):  # of another model, or not ours: the scheduler complains
                    self._window.add(RoutingReport.from_fields(fields))
            if not entries:
                break
        if not news:
            return []
        found = [self._window.routing(layer) for layer in self._window.layers]
        return [layer for layer in found if layer is not None]

    def _expected(self, now_s: float, asked: Demand) -> Demand:
        """The demand now, or the season's for one interval ahead where that is more."""
        if self._forecast is None:
            return asked
        phase, rates = self._phase
        if (here := self._forecast.phase(now_s)) != phase:
            if rates:
                middle = now_s - self.settings.season_s / PHASES
                self._forecast = self._forecast.observe(middle, sum(rates) / len(rates))
            self._phase = phase, rates = here, []
        rates.append(asked.tokens_per_s)
        ahead = self.settings.interval_s + self.settings.season_s / PHASES
        if self._forecast.phase(now_s + ahead) == here or not asked.tokens_per_s:
            return asked
        known = dataclasses.replace(self._forecast, last=asked.tokens_per_s)
        expected = known.predict(now_s, ahead)
        return asked.scaled(expected / asked.tokens_per_s) if expected > asked.tokens_per_s else asked

    # -- acting -----------------------------------------------------------------------------------

    def _act(self) -> None:
        """Start moving towards the target, unless that is under way: it looks at the target at each step."""
        if self.settings.mode != "act" or self._actuator is None or not self.may_act:
            return
        if (self._action is None or self._action.done()) and time.monotonic() >= self._not_before:
            self._action = asyncio.create_task(self._move(self._actuator), name="move")

    async def _move(self, actuator: Actuator) -> None:
        try:
            while self.state.target is not None and self.may_act:
                now = await actuator.sizes()
                step = next_step(now, self.state.target)
                if step == now:
                    return
                log.info("%d x %d: changing to %d x %d", *now, *step)
                if sum(step) > sum(now):
                    await actuator.grow(now, step)
                else:
                    pool = Pool.ATTENTION if step[0] < now[0] else Pool.MOE
                    await actuator.shrink(pool, step[pool.value])
                self.state.actions += 1
        except JanusError as error:
            self.state.failed_actions += 1
            self._not_before = time.monotonic() + _FAILED_S
            log.error("sizes were not changed, the next try is in %g s at the earliest: %s", _FAILED_S, error)
            self.state.status = f"the last action failed: {error}"
        except Exception:
            self.state.failed_actions += 1
            self._not_before = time.monotonic() + _FAILED_S
            log.exception("sizes were not changed")


__all__ = ["Autoscaler", "ScalingError", "State", "View"]
