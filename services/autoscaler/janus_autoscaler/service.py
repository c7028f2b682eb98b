"""AutoscalerService: what the mesh does and what it should achieve; there is no solver in this release."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument
from janus_runtime.records import Role, WorkerState
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc

from janus_autoscaler.objective import Objective, ObjectiveStore, checked
from janus_autoscaler.observe import observe

NO_SOLVER = (
    "observing only: the solver that plans pool sizes is not part of this release, so no plan is made and no "
    "worker is added or drained"
)


class AutoscalerService(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    """The servicer; it reads the workers' statistics when asked, so an idle mesh costs it nothing."""

    def __init__(
        self, coordination: Coordination, store: ObjectiveStore, *, window_s: float, max_workers: int
    ) -> None:
        self._coordination = coordination
        self._store = store
        self._window_s = window_s
        self._max_workers = max_workers

    async def GetPlan(self, request: pb.GetPlanRequest, context: Any) -> pb.GetPlanResponse:
        """Objective, observation and pool sizes now; the plan stays unset and ``status`` says why."""
        leases = await self._coordination.workers()
        workers = [w for w in leases if w.role in (Role.ATTENTION, Role.MOE)]
        samples = {
            w.worker_id: await self._coordination.read_stats(w.worker_id, window_s=self._window_s)
            for w in workers
        }
        observation = observe(workers, samples, now_s=time.time(), window_s=self._window_s)
        serving = [w for w in workers if w.state is WorkerState.READY]
        return pb.GetPlanResponse(
            objective=_to_message(await self._store.read()),
            observation=pb.Observation(**dataclasses.asdict(observation)),
            current_attention=sum(w.role is Role.ATTENTION for w in serving),
            current_moe=sum(w.role is Role.MOE for w in serving),
            status=NO_SOLVER,
        )

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        """No candidates without a solver; ``status`` says so."""
        return pb.ExplainResponse(status=NO_SOLVER)

    async def SetObjective(self, request: pb.SetObjectiveRequest, context: Any) -> pb.SetObjectiveResponse:
        """Check and keep; an unset pool bound (0) is 1 at least and ``max_workers`` at most."""
        if not request.HasField("objective"):
            raise InvalidArgument(
                "is required", field="objective", allowed="an Objective with tpot_ms above 0"
            )
        asked = request.objective
        objective = checked(
            Objective(
                tpot_ms=asked.tpot_ms,
                min_attention=asked.min_attention or 1,
                max_attention=asked.max_attention or max(self._max_workers, asked.min_attention),
                min_moe=asked.min_moe or 1,
                max_moe=asked.max_moe or max(self._max_workers, asked.min_moe),
            )
        )
        await self._store.write(objective)
        return pb.SetObjectiveResponse(objective=_to_message(objective))


def _to_message(objective: Objective) -> pb.Objective:
    return pb.Objective(**dataclasses.asdict(objective))
