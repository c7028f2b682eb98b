"""AutoscalerService: what the mesh does, what it should achieve, what is planned, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from janus_runtime.errors import InvalidArgument
from janus_scaling import Candidate
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc

from janus_autoscaler.loop import Autoscaler
from janus_autoscaler.objective import Objective, ObjectiveStore, checked
from janus_autoscaler.observe import Observation

MAX_MS = 1e9
"""Times beyond it are shown as it: a queue that never ends has no finite one."""


class AutoscalerService(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    """The servicer. Observations are made when asked; plans are the loop's."""

    def __init__(self, autoscaler: Autoscaler, store: ObjectiveStore) -> None:
        self._autoscaler, self._store = autoscaler, store

    async def GetPlan(self, request: pb.GetPlanRequest, context: Any) -> pb.GetPlanResponse:
        """Objective, observation and sizes now; what the last decision planned for, and came to."""
        view, state = await self._autoscaler.look(), self._autoscaler.state
        answer = pb.GetPlanResponse(
            objective=_to_message(await self._store.read()),
            observation=_observed(view.observation, state.tpot_p95_s),
            current_attention=view.serving[0],
            current_moe=view.serving[1],
            status="; ".join(text for text in (state.status, state.reason) if text),
            mode=self._autoscaler.settings.mode,
        )
        if state.target is not None:
            answer.target_attention, answer.target_moe = state.target
        if state.verdict is not None:
            answer.objective_met = state.verdict.met
            if (best := state.verdict.best) is not None:
                answer.planned_attention, answer.planned_moe = best.n_a, best.n_e
        if (asked := state.demand) is not None:
            answer.demand.MergeFrom(
                pb.Demand(
                    tokens_per_second=asked.tokens_per_s, prompt_tokens_per_second=asked.prompt_tokens_per_s,
                    context=asked.context, prompt_length=asked.prompt_length, backlog_tokens=asked.backlog_tokens,
                )
            )  # fmt: skip
        if (learner := self._autoscaler.learner) is not None:
            answer.model_error = learner.error
            learnt = learner.learnt
            answer.coefficients.extend(
                pb.Coefficient(name=n, value=e.value, std=e.std, source=learnt.sources[n])
                for n, e in learnt.estimates.items()
            )
        return answer

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        """Every candidate of the last decision, the best first, and why it lost."""
        state = self._autoscaler.state
        plan = state.verdict.plan if state.verdict is not None else None
        if plan is None:
            return pb.ExplainResponse(status=state.status)
        shown = plan.candidates[: request.limit or len(plan.candidates)]
        chosen = state.verdict.best if state.verdict else None
        return pb.ExplainResponse(
            status=state.status,
            candidates=[_candidate(c, "" if c is chosen else plan.why_not(c), c is chosen) for c in shown],
        )

    async def SetObjective(self, request: pb.SetObjectiveRequest, context: Any) -> pb.SetObjectiveResponse:
        """Check and keep; an unset pool bound (0) is 1 at least and ``max_workers`` at most."""
        if not request.HasField("objective"):
            raise InvalidArgument(
                "is required", field="objective", allowed="an Objective with tpot_ms above 0"
            )
        asked, most = request.objective, self._autoscaler.settings.max_workers
        objective = checked(
            Objective(
                tpot_ms=asked.tpot_ms,
                ttft_ms=asked.ttft_ms,
                min_attention=asked.min_attention or 1,
                max_attention=asked.max_attention or max(most, asked.min_attention),
                min_moe=asked.min_moe or 1,
                max_moe=asked.max_moe or max(most, asked.min_moe),
            )
        )
        await self._store.write(objective)
        return pb.SetObjectiveResponse(objective=_to_message(objective))

    async def GetStats(
        self, request: pb.AutoscalerServiceGetStatsRequest, context: Any
    ) -> pb.AutoscalerServiceGetStatsResponse:
        """Of the last decision: a scrape costs no look at the mesh."""
        loop, state = self._autoscaler, self._autoscaler.state
        best = state.verdict.best if state.verdict else None
        now, target = loop.serving, state.target or (0, 0)
        return pb.AutoscalerServiceGetStatsResponse(
            attention=now[0], moe=now[1], planned_attention=best.n_a if best else 0,
            planned_moe=best.n_e if best else 0, target_attention=target[0], target_moe=target[1],
            demand_tokens_per_second=state.demand.tokens_per_s if state.demand else 0.0,
            predicted_tpot_seconds=best.tpot_s if best else 0.0, measured_tpot_seconds=state.tpot_p95_s,
            model_error_ratio=loop.learner.error if loop.learner else 0.0,
            objective_tpot_seconds=(await self._store.read()).tpot_ms / 1e3,
            objective_met=state.verdict.met if state.verdict else False, decisions=state.decisions,
            actions=state.actions, failed_actions=state.failed_actions,
        )  # fmt: skip


def _candidate(c: Candidate, reason: str, chosen: bool) -> pb.Candidate:
    parts = c.time
    return pb.Candidate(
        attention=c.n_a, moe=c.n_e, feasible=c.feasible, predicted_tpot_ms=1e3 * c.tpot_s,
        reason=c.reason if chosen else reason, predicted_ttft_ms=min(MAX_MS, 1e3 * c.ttft_s), cost=c.cost,
        batch=c.batch, a_max=c.a_max, attention_ms=1e3 * parts.attention, moe_ms=1e3 * parts.moe,
        exchange_ms=1e3 * parts.comm, chosen=chosen,
    )  # fmt: skip


def _observed(seen: Observation, p95_s: float) -> pb.Observation:
    known = {f.name for f in pb.Observation.DESCRIPTOR.fields}
    fields = {k: v for k, v in dataclasses.asdict(seen).items() if k in known}
    return pb.Observation(**fields, tpot_ms_p95=1e3 * p95_s)


def _to_message(objective: Objective) -> pb.Objective:
    assert math.isfinite(objective.ttft_ms)
    return pb.Objective(**dataclasses.asdict(objective))
