"""``python -m janus_autoscaler``: run the autoscaler."""

from __future__ import annotations

import contextlib
import os

import click
from janus_runtime.coordination import Coordination
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_runtime.service import package_version, run_service
from janus_runtime.settings import build, click_options
from janus_runtime.startup import Startup
from janus_runtime.telemetry import setup_telemetry, shutdown_telemetry
from janus_wire.v1 import autoscaler_pb2_grpc

from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_autoscaler.service import NO_SOLVER, AutoscalerService

ROLE = "autoscaler"


@click.command()
@click_options(AutoscalerSettings, ROLE)
def main(**flags: object) -> None:
    """SLO-aware autoscaler: observes demand and step times."""
    settings = build(AutoscalerSettings, ROLE, flags)
    run_service(lambda: serve(settings))


async def serve(settings: AutoscalerSettings) -> None:
    """Run until cancelled."""
    setup_telemetry(ROLE, settings.worker_id, settings)
    startup = Startup(ROLE, settings.worker_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutdown_telemetry)
        coordination = await Coordination.connect(settings, startup)
        stack.push_async_callback(coordination.close)
        server = await stack.enter_async_context(GrpcServer(settings, ROLE))
        most = settings.max_workers
        store = ObjectiveStore(
            coordination, Objective(tpot_ms=settings.tpot_ms, max_attention=most, max_moe=most)
        )
        server.add(
            autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
            AutoscalerService(coordination, store, window_s=settings.window_s, max_workers=most),
            "janus.v1.AutoscalerService",
        )
        address = await server.start()
        keeper = await coordination.register(
            Lease(
                worker_id=settings.worker_id, member=0, role=Role.AUTOSCALER, pid=os.getpid(),
                grpc_address=address, node=settings.node, state=WorkerState.READY, detail=NO_SOLVER,
                version=package_version("janus-mesh-autoscaler"),
            )
        )  # fmt: skip
        stack.push_async_callback(keeper.close)
        server.set_serving(True)
        startup.ready(f"gRPC at {address}")
        await keeper.wait_superseded()


if __name__ == "__main__":
    main()
