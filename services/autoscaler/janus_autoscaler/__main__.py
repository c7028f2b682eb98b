"""``python -m janus_autoscaler``: run the autoscaler."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os

import click
from janus_models.errors import ConfigError
from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_runtime.service import package_version, run_service
from janus_runtime.settings import build, click_options
from janus_runtime.startup import Startup
from janus_runtime.telemetry import setup_telemetry, shutdown_telemetry
from janus_scaling import HardwareProfile, ModelShape, ScalingError, profile, shape
from janus_wire.keda import externalscaler_pb2_grpc
from janus_wire.v1 import autoscaler_pb2_grpc

from janus_autoscaler import actuators
from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.keda import ExternalScaler
from janus_autoscaler.loop import Autoscaler
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_autoscaler.office import Office
from janus_autoscaler.service import AutoscalerService

ROLE = "autoscaler"


@click.command()
@click_options(AutoscalerSettings, ROLE)
def main(**flags: object) -> None:
    """SLO-aware autoscaler: chooses both pool sizes to meet the objective with the least costly workers."""
    settings = build(AutoscalerSettings, ROLE, flags)
    run_service(lambda: serve(settings))


async def serve(settings: AutoscalerSettings) -> None:
    """Run until cancelled."""
    model, hardware = known(settings)
    setup_telemetry(ROLE, settings.worker_id, settings)
    startup = Startup(ROLE, settings.worker_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutdown_telemetry)
        coordination = await Coordination.connect(settings, startup)
        stack.push_async_callback(coordination.close)
        server = await stack.enter_async_context(GrpcServer(settings, ROLE))
        most = settings.max_workers
        default = Objective(
            tpot_ms=settings.tpot_ms, ttft_ms=settings.ttft_ms, max_attention=most, max_moe=most
        )
        store = ObjectiveStore(coordination, default)
        drainer = actuators.Drainer(coordination, settings, deadline_s=settings.drain_deadline_s)
        office = Office(coordination, settings.worker_id, settings.lease_ttl_s)
        acts = settings.mode == "act" and model is not None
        autoscaler = Autoscaler(
            settings, coordination, store, model=model, hardware=hardware,
            actuator=actuators.create(settings, drainer), office=office if acts else None,
        )  # fmt: skip
        stack.push_async_callback(office.resign)
        stack.push_async_callback(autoscaler.close)
        server.add(
            autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
            AutoscalerService(autoscaler, store),
            "janus.v1.AutoscalerService",
        )
        server.add(
            externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server,
            ExternalScaler(autoscaler),
            "externalscaler.ExternalScaler",
        )
        if acts:
            await office.turn()
        address = await server.start()
        keeper = await coordination.register(
            Lease(
                worker_id=settings.worker_id, member=0, role=Role.AUTOSCALER, pid=os.getpid(),
                grpc_address=address, node=settings.node, state=WorkerState.READY, detail=autoscaler.describe(),
                version=package_version("janus-mesh-autoscaler"),
            )
        )  # fmt: skip
        stack.push_async_callback(keeper.close)

        async def tell() -> None:
            await keeper.update(detail=autoscaler.describe())

        office.on_change = tell
        server.set_serving(True)
        startup.ready(f"gRPC at {address}, {autoscaler.describe()}")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(autoscaler.run())
            if acts:
                tasks.create_task(office.keep())
            tasks.create_task(keeper.wait_superseded())


def known(
    settings: AutoscalerSettings,
) -> tuple[ModelShape | None, tuple[HardwareProfile, HardwareProfile]]:
    """The model's shape and the pools' hardware. Raises InvalidArgument naming what cannot be used."""
    try:
        pools = [profile(name) for name in (settings.attention_hardware, settings.moe_hardware)]
        prices = (settings.attention_price, settings.moe_price)
        pools = [dataclasses.replace(p, price=x or p.price) for p, x in zip(pools, prices, strict=True)]
        return shape(settings.model) if settings.model else None, (pools[0], pools[1])
    except ScalingError as error:
        raise InvalidArgument(str(error), field=error.field) from error
    except ConfigError as error:
        raise InvalidArgument(str(error), field="--model", value=settings.model) from error


if __name__ == "__main__":
    main()
